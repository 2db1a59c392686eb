"""Results beside a report: what another machine gets from them is what was measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from study.archive import RECORDS, check_nothing_lost, save, take_up
from study.extras import CASE
from study.plan import Job
from study.report import build
from study.results import Findings
from study.runner import Study, home_of, is_done
from test_study_results import findings as findings  # the fixture, with its results

from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.errors import InputError

HERE = "/some/machine/runs"


@pytest.fixture
def kept(findings: Findings, tmp_path: Path) -> Path:
    """The archive of the results, which carry this machine's paths, and of a session."""
    for job in findings.plan.ranked():
        file = home_of(findings.output, job) / "run" / "evaluation-test.json"
        if file.exists():
            content = json.loads(file.read_text())
            content["provenance"] |= {"run": HERE, "dataset": HERE, "settings": HERE, "best_epoch": 1}
            content["provenance"]["users_evaluated"] = 2
            file.write_text(json.dumps(content))
    session = {"command": "python", "hardware": "cores", "commit": "abc", "started": 0.0, "seconds": 7.0}
    (findings.output / "sessions").mkdir()
    (findings.output / "sessions" / "001.json").write_text(
        json.dumps(session | {"failed": {}, "left_out": [], "absent": []})
    )
    activity = findings.output / "sets" / "toy" / "own" / "activity.parquet"
    activity.parent.mkdir(parents=True)
    pq.write_table(pa.table({"user": ["u0", "u1"], "train": [3, 30]}), activity)
    save(findings, tmp_path / "kept")
    return tmp_path / "kept"


def records(kept: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (kept / RECORDS).read_text().splitlines()]


def write(kept: Path, lines: list[dict[str, Any]]) -> None:
    (kept / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))


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
    assert other.activity("toy") == {"u0": 3, "u1": 30}
    same = [
        build(Findings(findings.plan, place), None).markdown() for place in (other.output, findings.output)
    ]
    # which of two equal values is bold, rounding may decide
    plain = [text.replace("**", "") for text in same]
    assert plain[0] == plain[1]


def test_where_a_run_lay_is_not_kept(kept: Path) -> None:
    text = (kept / RECORDS).read_text()
    assert '"best_epoch": 1' in text
    assert HERE not in text


def test_a_case_comes_with_its_job_and_rule_only(findings: Findings, kept: Path, tmp_path: Path) -> None:
    """Also with a title that some readers take for the end of a line."""
    rule = {"set": "toy", "column": "sector"}
    plan = replace(findings.plan, case=rule)
    content = {"rule": rule, "title": "Ö\u2028x"}
    write(kept, [*records(kept), {"kind": "case", "case": content}])
    take_up(plan, kept, tmp_path / "same")
    assert json.loads((tmp_path / "same" / CASE).read_text("utf-8")) == content
    take_up(replace(plan, case=rule | {"column": "other"}), kept, tmp_path / "other-rule")
    assert not (tmp_path / "other-rule" / CASE).exists()


def test_a_job_of_other_settings_is_left(findings: Findings, kept: Path, tmp_path: Path) -> None:
    lines, changed = records(kept), Job("toy", "own", "bpr-mf", 1)
    for line in lines:
        if line.get("name") == changed.name:
            line["job"]["options"] += ["--epochs", "7"]
    write(kept, lines)
    assert take_up(findings.plan, kept, tmp_path / "other") == 4
    assert not is_done(tmp_path / "other", changed)


def test_a_job_without_its_users_is_left(findings: Findings, kept: Path, tmp_path: Path) -> None:
    file, job = kept / "users-toy.parquet", Job("toy", "own", "bpr-mf", 1)
    table = pq.read_table(file)
    pq.write_table(table.filter(pa.compute.not_equal(table["job"], job.name)), file)
    assert take_up(findings.plan, kept, tmp_path / "other") == 4
    assert not is_done(tmp_path / "other", job)


def test_what_an_output_has_stays(findings: Findings, kept: Path) -> None:
    assert take_up(findings.plan, kept, findings.output) == 0
    job = Job("toy", "own", "bpr-mf", 1)
    shutil.rmtree(home_of(findings.output, job))
    (home_of(findings.output, job) / "run").mkdir(parents=True)  # begun and cut off
    assert take_up(findings.plan, kept, findings.output) == 1
    assert is_done(findings.output, job)


def test_an_archive_is_not_written_over_by_less(findings: Findings, kept: Path, tmp_path: Path) -> None:
    check_nothing_lost(findings.plan, kept, findings.output)
    check_nothing_lost(findings.plan, tmp_path / "no archive", tmp_path / "empty")
    with pytest.raises(InputError, match=r"got 5, the first toy/own/gnnmr.*--take-up"):
        check_nothing_lost(findings.plan, kept, tmp_path / "empty")


def test_results_of_other_data_are_not_put_beside(findings: Findings, kept: Path, tmp_path: Path) -> None:
    place, job = tmp_path / "data", Job("toy", "own", "bpr-mf", 1)
    synthetic_dataset(str(place), num_users=40, num_items=80, num_modalities=1, interactions_per_user=8)
    mine = open_dataset(place, verify="structure").digest
    lines = records(kept)
    for digest in (mine, "0" * 64):
        for line in lines:
            if line["kind"] == "job":
                line["provenance"]["data_digest"] = digest
        write(kept, lines)
        output = tmp_path / digest[:4]
        take_up(findings.plan, kept, output)
        study = Study(findings.plan, output, None, budget=None, argv=[])
        if digest == mine:
            study._check_digest(job, place)
            continue
        with pytest.raises(InputError, match="expected the data of the results that are there, got digests"):
            study._check_digest(job, place)


def test_a_session_tells_a_failure_without_the_machines_folders(findings: Findings, tmp_path: Path) -> None:
    study = Study(findings.plan, findings.output, None, budget=None, argv=[])
    job = study._take(0)
    assert job is not None
    place = home_of(findings.output, job).absolute()
    study._finish(0, job, {"error": f"error: {place}/run/checkpoints: expected more, got less"})
    session = json.loads(study.session.read_text())
    told = f"error: OUTPUT/jobs/{job.name}/run/checkpoints: expected more, got less"
    assert session["failed"] == {job.name: told}
    assert str(tmp_path) not in study.session.read_text()


def test_every_value_of_a_user_is_kept_once(kept: Path) -> None:
    table = pq.read_table(kept / "users-toy.parquet")
    assert table.num_rows == 2 * (3 + 2 + 2 + 1 + 1)
    assert table.schema.names == ["job", "row", "user", "Recall@20", "NDCG@20"]
