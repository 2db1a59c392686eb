"""Results beside a report: what another machine gets from them is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from study.archive import RECORDS, save, take_up
from study.extras import CASE
from study.plan import Job
from study.report import build
from study.results import Findings
from study.runner import home_of, is_done
from test_study_results import findings as findings  # the fixture, with its results

HERE = "/some/machine/runs"


@pytest.fixture
def kept(findings: Findings, tmp_path: Path) -> Path:
    """The archive of the results, which are those of a session and carry this machine's paths."""
    for job in findings.plan.ranked():
        file = home_of(findings.output, job) / "run" / "evaluation-test.json"
        if file.exists():
            content = json.loads(file.read_text())
            content["provenance"] |= {"run": HERE, "dataset": HERE, "settings": HERE, "best_epoch": 1}
            file.write_text(json.dumps(content))
    session = {"command": "python", "hardware": "cores", "commit": "abc", "started": 0.0, "seconds": 7.0}
    (findings.output / "sessions").mkdir()
    (findings.output / "sessions" / "001.json").write_text(
        json.dumps(session | {"failed": {}, "left_out": [], "absent": []})
    )
    (findings.output / CASE).write_text('{"fund": "Ö"}')
    save(findings, tmp_path / "kept")
    return tmp_path / "kept"


def test_another_output_gets_the_same_results(findings: Findings, kept: Path, tmp_path: Path) -> None:
    other = Findings(findings.plan, tmp_path / "other")
    assert take_up(other.plan, kept, other.output) == 5
    for job in findings.plan.ranked():
        mine, theirs = Findings(findings.plan, findings.output).get(job), other.get(job)
        assert (mine is None) == (theirs is None) == (not is_done(other.output, job))
        if mine is None or theirs is None:
            continue
        assert theirs.rows == mine.rows
        for row in mine.rows:
            for metric in ("Recall@20", "NDCG@20"):
                assert theirs.users(row, metric)[0].tolist() == mine.users(row, metric)[0].tolist()
                assert theirs.users(row, metric)[1] == pytest.approx(mine.users(row, metric)[1], abs=1e-7)
    assert other.sessions() == findings.sessions()
    assert (other.output / CASE).read_text("utf-8") == '{\n "fund": "Ö"\n}\n'
    for found in (findings, other):
        (found.output / CASE).unlink()  # this one is not drawn
    assert build(other, None).markdown() == build(Findings(findings.plan, findings.output), None).markdown()


def test_no_path_of_the_machine_is_kept(kept: Path) -> None:
    text = (kept / RECORDS).read_text()
    assert '"best_epoch": 1' in text
    assert HERE not in text


def test_a_job_of_other_settings_is_left(findings: Findings, kept: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (kept / RECORDS).read_text().splitlines()]
    changed = Job("toy", "own", "bpr-mf", 1)
    for line in lines:
        if line.get("name") == changed.name:
            line["job"]["options"] += ["--epochs", "7"]
    (kept / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert take_up(findings.plan, kept, tmp_path / "other") == 4
    assert not is_done(tmp_path / "other", changed)


def test_an_output_with_jobs_takes_nothing_up(findings: Findings, kept: Path) -> None:
    assert take_up(findings.plan, kept, findings.output) == 0


def test_every_value_of_a_user_is_kept_once(kept: Path) -> None:
    table = pq.read_table(kept / "users-toy.parquet")
    assert table.num_rows == 2 * (3 + 2 + 2 + 1 + 1)
    assert table.schema.names == ["job", "row", "user", "Recall@20", "NDCG@20"]
