"""A whole study on planted data: killed while it runs, gone on, its report built, and built again from files alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import pytest
from study.figures import curves

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
PLAN = """
[defaults]
epochs = 30
patience = 30
valid_every = 1
embedding_dim = 16
num_candidates = 32
global_batch_size = 64
num_neighbors = [5, 5]

[sets.planted]
synthetic = { num_users = 80, num_items = 90, num_modalities = 3, interactions_per_user = 12 }
seconds = 0.1

[[part]]
name = "tables"
sets = ["planted"]
methods = ["gnnmr", "bpr-mf", "popularity", "ease"]
seeds = 2

[[part]]
name = "mutual"
sets = ["planted"]
methods = ["gnnmr"]
seeds = 2
values.distill_weight = ["default", 0.0]

[[part]]
name = "dimension"
sets = ["planted"]
methods = ["gnnmr"]
values.embedding_dim = [8, 16]

[[part]]
name = "missing"
sets = ["planted"]
variants = ["missing-50"]
methods = ["gnnmr"]
values.distill_weight = ["default", 0.0]

[case]
set = "planted"
column = "category"
funds = 2
least = 3
truth = 2
k = 10
"""
JOBS = 11


def command(home: Path, *words: str) -> list[str]:
    places = ["--plan", home / "plan.toml", "--output", home / "out", "--report", home / "report"]
    return [
        sys.executable,
        str(ROOT / "benchmarks" / "paper.py"),
        *map(str, places),
        "--processes",
        "1",
        *words,
    ]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def call(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(home, *words), env=environment(), text=True, capture_output=True)


def found(home: Path, pattern: str) -> list[Path]:
    """Files of jobs; unlike ``Path.rglob``, ``glob`` bears directories that vanish under it."""
    return [Path(file) for file in glob(str(home / "out" / "jobs" / "**" / pattern), recursive=True)]


def results(home: Path) -> dict[str, int]:
    files = found(home, "evaluation-test.json")
    return {str(file.relative_to(home)): file.stat().st_mtime_ns for file in files}


def kill_in_training(home: Path) -> tuple[dict[str, int], Path]:
    """Start, wait for a result and for a checkpoint of the job after it, kill; returns results and the cut run."""
    process = subprocess.Popen(
        command(home), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 200
        while time.monotonic() < end:
            saved = found(home, "checkpoints/*/epoch-0000[1-5]-*/manifest.json")  # far from its end
            cut = [file.parents[3] for file in saved]
            cut = [run for run in cut if not (run / "evaluation-test.json").exists()]
            if results(home) and cut:
                break
            assert process.poll() is None
            time.sleep(0.02)
        else:
            pytest.fail("no result and checkpoint in 200 s")
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    time.sleep(1.0)  # its worker sees that it is gone
    return results(home), cut[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], Path]:
    """A finished study that was killed once: its folder, the results before the kill, the run that was cut."""
    home = tmp_path_factory.mktemp("study")
    (home / "plan.toml").write_text(PLAN)
    before, cut = kill_in_training(home)
    done = call(home)
    assert done.returncode == 0, done.stderr
    return home, before, cut


def test_it_goes_on_where_it_was_killed(study: tuple[Path, dict[str, int], Path]) -> None:
    home, before, cut = study
    after = results(home)
    assert 0 < len(before) < JOBS
    assert len(after) == JOBS
    assert {name: after[name] for name in before} == before  # what was done was left alone
    log = (cut.parent / "log.txt").read_text()
    assert "--resume" in log
    assert "going on at epoch" in log
    assert not (cut / "checkpoints").exists()
    again = call(home)
    assert again.returncode == 0
    assert results(home) == after


def test_the_report_has_every_part(study: tuple[Path, dict[str, int], Path]) -> None:
    home, _, _ = study
    text = (home / "report" / "paper.md").read_text()
    for heading in (
        *("Table 3: Recall", "Table 4: NDCG", "Paired tests over users", "Table 5: mutual learning"),
        "Tuned for one set",
        *("Figure 3: embedding size d", "Figure 4: lambda", "Figure 5", "Cold items", "Missing modalities"),
        *("Users by activity", "Split protocol", "Cost", "Not run"),
    ):
        assert f"## {heading}" in text
    for row in (
        "gnnmr, text",
        "gnnmr, concatenation",
        "gnnmr, aligned-average",
        "bpr-mf",
        "popularity",
        "ease",
    ):
        assert f"\n| {row} | " in text
    assert f"{JOBS} jobs done, 0 not run" in text
    assert "Hardware: `" in text
    assert text.count("Not in this plan.") == 5  # tuned, lambda, cold, negatives, protocol
    html = (home / "report" / "paper.html").read_text()
    assert html.count("data:image/png;base64,") == text.count("](") == 3
    for name in ("case.png", "dimension-planted.png", "missing-planted.png"):
        assert (home / "report" / name).read_bytes().startswith(b"\x89PNG")


def test_the_case_is_what_the_data_say(study: tuple[Path, dict[str, int], Path]) -> None:
    found = json.loads((study[0] / "out" / "case.json").read_text())
    assert len(found["funds"]) == 2
    for fund in found["funds"]:
        assert len(fund["history"]) >= 3
        assert len(fund["truth"]) >= 2
        truth = {box["title"] for box in fund["truth"]}
        assert all(box["hit"] == (box["title"] in truth) for box in fund["lists"])
        assert not {box["title"] for box in fund["lists"]} & {box["title"] for box in fund["history"]}
        assert len(fund["lists"]) == 10


def test_the_report_alone_is_built_again_from_the_files(study: tuple[Path, dict[str, int], Path]) -> None:
    home, _, _ = study
    files = {file.name: file.read_bytes() for file in (home / "report").iterdir()}
    done = call(home, "--report-only")
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_bytes() for file in (home / "report").iterdir()} == files


def test_a_budget_leaves_the_least_valuable_out_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    done = call(tmp_path, "--budget-hours", "0.0001")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report" / "paper.md").read_text()
    assert "| bpr-mf | not run | not run | not run | 0 of 2 |" in text
    assert "| planted/own/gnnmr: the budget had no room | 0, 1 |" in text
    assert f"0 jobs done, {JOBS} not run" in text


def test_a_failed_job_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    plan = PLAN.replace(
        'methods = ["gnnmr", "bpr-mf", "popularity", "ease"]\nseeds = 2',
        'methods = ["gnnmr", "bpr-mf"]\nseeds = 1',
    )
    (tmp_path / "plan.toml").write_text(
        plan.replace("[sets.planted]", 'members = ["text", "no-such"]\n\n[sets.planted]', 1)
    )
    done = call(tmp_path, "--only", "tables")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("failed: 2 jobs failed")
    assert "expected some of auto, each" in (tmp_path / "report" / "paper.md").read_text()


def test_bad_options_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN)
    done = call(tmp_path, "--only", "figures")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_curves_are_the_same_bytes_for_the_same_points() -> None:
    panels = {"Recall@20": {"fused": {0.0: (0.1, 0.0), 0.5: (0.2, 0.01)}}}
    assert curves(panels, "lambda", scale="places") == curves(panels, "lambda", scale="places")
