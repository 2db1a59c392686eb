"""How far a run is: of directories that real runs left, in every state, on a disk and on a file system by URI."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from gnnmr_dist.status import Status, duration, main, read_status, status_line

NOW = 1_000_000.0
SETTINGS = '[training]\nepochs = 10\nvalid_every = 2\n[evaluation]\nselect_metric = "NDCG@20"\n'


def step(epoch: int, number: int, ago: float) -> dict[str, Any]:
    return {"kind": "step", "epoch": epoch, "step": number, "losses": {}, "time": NOW - ago}


def window(epoch: int, number: int, ago: float) -> dict[str, Any]:
    pace = {"steps": 5, "seconds": 10.0, "samples_per_second": 1234.4}
    return {"kind": "steps", "epoch": epoch, "step": number, "losses": {}, "time": NOW - ago} | pace


def epoch(number: int, ago: float, valid: bool = True) -> dict[str, Any]:
    more = {"best": {"epoch": 2, "NDCG@20": 0.25}, "valid": {}, "valid_seconds": 6.0} if valid else {}
    return {"kind": "epoch", "epoch": number, "seconds": 40.0, "losses": {}, "time": NOW - ago} | more


def made(folder: Path, records: list[dict[str, Any]], noted: str = "training", **more: Any) -> str:
    """A run directory as training leaves it: 20 steps an epoch."""
    folder.mkdir()
    (folder / "settings.toml").write_text(SETTINGS)
    (folder / "run.json").write_text(json.dumps({"steps_per_epoch": 20}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "status.json").write_text(
        json.dumps({"status": noted, "reason": "", "time": NOW - 9999} | more)
    )
    return str(folder)


RECORDS = [epoch(0, 300, valid=False), epoch(1, 200), epoch(2, 150, valid=False)]
RECORDS += [step(3, 9, 61), window(3, 9, 61), step(3, 10, 30)]


@pytest.mark.parametrize("remote", [False, True])
def test_a_run_under_way(tmp_path: Path, remote: bool) -> None:
    address = f"{'file://' if remote else ''}{made(tmp_path / 'run', RECORDS)}"
    status = read_status(address, NOW)
    assert (status.state, status.epoch, status.step, status.steps) == ("training", 3, 11, 20)
    assert (status.best, status.best_epoch, status.age) == (0.25, 2, 30.0)
    # 6.45 epochs of 20 steps of 2 s, and half a validation of 6 s each
    assert status.left == pytest.approx(6.45 * (40 + 3))
    assert status_line("run", status) == (
        "run: training, epoch 4/10, step 11/20, 1,234 samples/s, best NDCG@20 0.2500 (epoch 2), no checkpoint, "
        "at most 4 min left, written 30 s ago"
    )


def test_its_newest_complete_checkpoint_is_named(tmp_path: Path) -> None:
    address = made(tmp_path / "run", RECORDS)
    for name in ("attempt-001/epoch-00003-step-0000000", "attempt-001/epoch-00003-step-0000010"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / name / "text.weights.safetensors").touch()
    whole = tmp_path / "run" / "checkpoints" / "attempt-001" / "epoch-00003-step-0000000" / "manifest.json"
    whole.touch()
    status = read_status(address, whole.stat().st_mtime + 90, stale_after=1e12)
    assert status.checkpoint == "epoch-00003-step-0000000"
    assert status.checkpoint_age == pytest.approx(90, abs=1)
    assert "checkpoint epoch-00003-step-0000000 1 min ago" in status_line("run", status)


def test_stale_failed_and_interrupted_runs(tmp_path: Path) -> None:
    address = made(tmp_path / "run", RECORDS)
    line = status_line("run", read_status(address, NOW + 3600))
    assert line.startswith("run: stale, nothing written for 1 h 0 min, epoch 4/10, step 11/20, best")
    assert line.endswith("no checkpoint, start it again")
    assert read_status(address, NOW + 3600, stale_after=7200).state == "training"
    failed = made(tmp_path / "failed", RECORDS, "failed", reason="diverged: loss of text", time=NOW - 10)
    line = status_line("run", read_status(failed, NOW + 3600))
    assert line.startswith("run: failed (diverged: loss of text), epoch 4/10, step 11/20, best")
    assert "ended 1 h 0 min ago, start it again" in line
    assert read_status(made(tmp_path / "cut", RECORDS, "interrupted"), NOW).state == "interrupted"


def test_before_the_first_step_and_in_pretraining(tmp_path: Path) -> None:
    begun = read_status(made(tmp_path / "begun", [], time=NOW - 5), NOW)
    assert status_line("r", begun) == "r: training, epoch 1/10, step 0/20, no checkpoint, written 5 s ago"
    records = [{"kind": "pretraining", "epoch": 4, "losses": {}, "seconds": 1.0, "time": NOW - 5}]
    line = status_line("r", read_status(made(tmp_path / "pre", records), NOW))
    assert line == "r: training, pre-training epoch 5 done, no checkpoint, written 5 s ago"


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    address = made(tmp_path / "run", [{k: v for k, v in r.items() if k != "time"} for r in RECORDS[:3]])
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "run" / "status.json").unlink()
    line = status_line("run", read_status(address, NOW))
    assert (
        line == "run: stale, epoch 4/10, step 0, best NDCG@20 0.2500 (epoch 2), no checkpoint, start it again"
    )


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told == f"error: {tmp_path}: expected a run directory (settings.toml, run.json), got none\n"
    (tmp_path / "settings.toml").write_text("[trainin]\n")
    assert main(["--run", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_real_run_that_finished(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(planted)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{planted}: finished after 2 epochs, best Recall@20 0.")
    assert " ago\n" in line
    assert line.count("\n") == 1
    copy = tmp_path / "run"
    shutil.copytree(planted, copy)
    later = time.time() + 9999
    (copy / "status.json").write_text('{"status": "training", "reason": "", "time": 1}')  # a stopped trial
    assert read_status(str(copy), later).state == "finished"
    (copy / "status.json").write_text("{")
    assert read_status(str(copy), later).state == "finished"
    shutil.rmtree(copy / "model")
    status: Status = read_status(str(copy), later)
    assert (status.state, status.checkpoint is not None) == ("stale", True)
    assert status_line("r", status).endswith("--resume goes on")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (59.7, "1 min"), (185, "3 min"), (4800, "1 h 20 min"), (183600, "2 d 3 h")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
