"""Sweeps on Ray: killed and resumed, stopped early, refused; the best settings give the same validation again."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from commands import SMALL, run, started, wait_for

from gnnmr_dist.runs import RunDirectory
from tune.history import newest_state

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SPACE = "[training]\nlearning_rate = [0.01, 1e-5]\n[loss]\ndistill_weight = [0.0, 0.5]\n"


def sweep_command(dataset: Path, folder: Path, *options: str) -> list[str]:
    (folder / "space.toml").write_text(SPACE)
    where = [
        "--dataset",
        str(dataset),
        "--space",
        str(folder / "space.toml"),
        "--output",
        str(folder / "sweep"),
    ]
    small = [word for name, values in SMALL.items() for word in (f"--{name}", *map(str, values))]
    return [sys.executable, "-m", "tune.sweep", *where, *small, *options]


def resume_command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tune.sweep", "--resume", "--output", str(folder / "sweep"), *options]


def trials(folder: Path) -> list[dict]:
    place = folder / "sweep" / "trials.jsonl"
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def ended(folder: Path) -> int:
    return sum(trial["ended"] is not None for trial in trials(folder))


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_cut_off_sweep_goes_on_and_its_best_settings_reproduce(
    dataset: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with started(sweep_command(dataset, tmp_path, "--concurrency", "1", "--stopper", "none")) as process:
        wait_for(lambda: ended(tmp_path) >= 1 and len(trials(tmp_path)) >= 2, process)
        wait_for(
            lambda: any((tmp_path / "sweep/trials/trial-0001").glob("checkpoints/*/*/manifest.json")), process
        )
        process.send_signal(number)
        process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "1 finished, 0 stopped, 0 failed, 1 unfinished" in (tmp_path / "sweep/report.md").read_text()
    first = trials(tmp_path)[0]
    done = run(resume_command(tmp_path, "--concurrency", "1"))
    assert (done.code, done.err) == (0, ""), done.out
    assert "going on: 1 ended, 1 begun" in done.out
    assert "trial-0000  " not in done.out  # not run again
    assert trials(tmp_path)[0] == first
    assert [t["ended"]["status"] for t in trials(tmp_path)] == ["finished"] * 4
    best = max(t["ended"]["value"] for t in trials(tmp_path))
    words = [
        "--dataset",
        str(dataset),
        "--config",
        str(tmp_path / "sweep/best.toml"),
        "--output",
        str(tmp_path / "run"),
    ]
    again = run([sys.executable, "-m", "gnnmr_dist.train", *words])
    assert again.code == 0, again.err
    state = newest_state(str(tmp_path / "run"))
    assert state is not None
    assert state.best_value == best


@pytest.mark.slow
def test_asha_stops_a_hopeless_trial_and_leaves_a_run_that_opens(dataset: Path, tmp_path: Path) -> None:
    options = ["--concurrency", "1", "--grace", "1", "--reduction", "2", "--epochs", "4"]
    done = run(sweep_command(dataset, tmp_path, *options))
    assert (done.code, done.err) == (0, ""), done.out
    stopped = [t for t in trials(tmp_path) if t["ended"]["status"] == "stopped"]
    assert stopped
    for trial in stopped:
        directory = RunDirectory(str(tmp_path / "sweep" / "trials" / f"trial-{trial['number']:04d}"))
        assert directory.model().state.best_value == trial["ended"]["value"]
    assert not (tmp_path / "sweep" / "ray").exists()


@pytest.mark.slow
def test_trials_with_workers_of_their_own_never_deadlock(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    done = run(
        sweep_command(dataset, tmp_path / "inner", "--num-workers", "2", "--epochs", "1", "--stopper", "none")
    )
    assert (done.code, done.err) == (0, ""), done.out
    assert [t["ended"]["status"] for t in trials(tmp_path / "inner")] == ["finished"] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--num-workers", "1", "--use-gpu", "always"], "1 GPU"),
        (["--concurrency", "1000"], "--concurrency: expected at most"),
    ],
)
def test_what_can_never_run_is_one_line(dataset: Path, tmp_path: Path, options: list[str], told: str) -> None:
    done = run(sweep_command(dataset, tmp_path, *options))
    assert done.code == 2, done.out
    assert done.err.count("\n") == 1, done.err
    assert told in done.err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_data_set_that_disappears_is_one_line_and_no_hang(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    with started(sweep_command(copy, tmp_path, "--concurrency", "1", "--stopper", "none")) as process:
        wait_for(lambda: len(trials(tmp_path)) >= 1, process)
        wait_for(lambda: (tmp_path / "sweep/trials/trial-0000/run.json").exists(), process)
        shutil.rmtree(copy)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert err.count("\n") == 1, err
    assert str(copy) in err
