"""A study's results in a form small enough to stand beside its report: any machine can go on from them.

records.jsonl         a line for each session, each finished job (settings, commit, times, rows, versions) and the case
users-SET.parquet     of every finished job, row and user the values that tests and intervals are made of
activity-SET.parquet  every user's number of train interactions
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist import storage
from gnnmr_dist.errors import InputError
from study.case import CASE, case_job
from study.datasets import ACTIVITY
from study.plan import Job, Plan
from study.results import CHANCE, METRICS, USERS, Findings, Result, among_cold
from study.runner import description, home_of, is_done
from study.tables import TESTED
from study.worker import RESULT, RUN, TIMES

RECORDS = "records.jsonl"
PLACES = ("run", "settings", "dataset")
"""What of a result's provenance says where things lay on its machine."""

Record = dict[str, Any]


def save(findings: Findings, folder: Path) -> None:
    """Write everything that is there; ``findings`` of the whole plan, or what is left out is gone from the archive."""
    results = [found for job in findings.plan.ranked() if (found := findings.get(job)) is not None]
    lines: list[Record] = [{"kind": "session", **session} for session in findings.sessions()]
    lines += [_record(findings.plan, result) for result in results]
    case = findings.output / CASE
    if case.exists():
        lines.append({"kind": "case", "case": json.loads(case.read_text(encoding="utf-8"))})
    folder.mkdir(parents=True, exist_ok=True)
    for name in findings.plan.sets:
        tables = [_users(result) for result in results if result.job.set == name]
        if tables:
            with storage.staged_file(str(folder / f"users-{name}.parquet")) as staged:
                pq.write_table(
                    pa.concat_tables(tables), str(staged), compression="zstd", compression_level=15
                )
        activity = findings.output / "sets" / name / "own" / ACTIVITY
        if activity.exists():
            storage.write_bytes_atomic(folder / f"activity-{name}.parquet", activity.read_bytes())
    storage.write_bytes_atomic(folder / RECORDS, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _record(plan: Plan, result: Result) -> Record:
    wanted = [f"{metric}@{k}" for metric in ("Recall", "NDCG") for k in result.content["provenance"]["ks"]]
    chance = [f"{CHANCE}@{k}" for k in result.content["provenance"]["ks"]]
    wanted += [among_cold(name) for name in wanted + chance]
    origin = {name: value for name, value in result.content["provenance"].items() if name not in PLACES}
    return {
        "kind": "job",
        "name": result.job.name,
        "job": description(plan, result.job),
        "times": result.times,
        "epochs": result.epochs,
        "rows": {
            row: {name: values[name] for name in wanted if name in values}
            for row, values in result.rows.items()
        },
        "provenance": origin,
    }


def _users(result: Result) -> pa.Table:
    table = pq.read_table(result.home / RUN / USERS, columns=["user", "row", *TESTED])
    single = {name: table[name].cast(pa.float32()) for name in TESTED}
    job = pa.array([result.job.name] * table.num_rows).dictionary_encode()
    return pa.table({"job": job, "row": table["row"].cast(pa.string()), "user": table["user"], **single})


def _lines(folder: Path) -> list[Record]:
    file = folder / RECORDS
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def _finished(plan: Plan, lines: list[Record]) -> Iterator[tuple[Job, Record]]:
    """The jobs of the plan, with these very settings, that an archive has."""
    jobs = {job.name: job for job in plan.ranked()}
    for line in lines:
        job = jobs.get(line["name"]) if line["kind"] == "job" else None
        if job is not None and line["job"] == description(plan, job):
            yield job, line


def check_nothing_lost(plan: Plan, folder: Path, output: Path) -> None:
    """Refuse to write a report over an archive that has finished jobs of the plan which OUTPUT lacks: InputError."""
    lost = [job.name for job, _ in _finished(plan, _lines(folder)) if not is_done(output, job)]
    if lost:
        raise InputError(
            f"{folder}: expected a report of no job that {output} lacks, got {len(lost)}, the first {lost[0]}: go on "
            f"from them with --take-up {folder}, or give another --report"
        )


def take_up(plan: Plan, folder: Path, output: Path) -> int:
    """Put what FOLDER has of the plan's jobs into OUTPUT, which keeps what it has; returns how many.

    Jobs of other settings are left, and such as lack values of users. Metrics that were not kept are missing
    afterwards, and so are the models.
    """
    files = {name: folder / f"users-{name}.parquet" for name in plan.sets}
    users = {name: pq.read_table(file) for name, file in files.items() if file.exists()}
    lines, taken = _lines(folder), []
    for job, line in _finished(plan, lines):
        if is_done(output, job) or job.set not in users:
            continue
        own = users[job.set].filter(pa.compute.equal(users[job.set]["job"], job.name))
        if own.num_rows == len(line["rows"]) * line["provenance"]["users_evaluated"]:
            _put(home_of(output, job), line, own)
            taken.append(job)
    for name in plan.sets:
        source, place = folder / f"activity-{name}.parquet", output / "sets" / name / "own" / ACTIVITY
        if source.exists() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            storage.write_bytes_atomic(place, source.read_bytes())
    _put_sessions(output, [line for line in lines if line["kind"] == "session"])
    cases = [line["case"] for line in lines if line["kind"] == "case"]
    if (
        cases
        and any(job.name == case_job(plan).name for job in taken)
        and cases[0]["rule"] == dict(plan.case)
    ):
        text = json.dumps(cases[0], indent=1, ensure_ascii=False) + "\n"
        storage.write_bytes_atomic(output / CASE, text.encode())
    return len(taken)


def _put(home: Path, line: Record, users: pa.Table) -> None:
    """A job's files as a run leaves them; what says that it is done comes last."""
    run = home / RUN
    shutil.rmtree(home, ignore_errors=True)  # of a run that was cut off
    run.mkdir(parents=True)
    epochs = [{"kind": "epoch", "epoch": n, "seconds": seconds} for n, seconds in enumerate(line["epochs"])]
    (run / METRICS).write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    pq.write_table(users.drop_columns("job"), run / USERS)
    (home / "job.json").write_text(json.dumps(line["job"]) + "\n")
    if line["times"]:
        (home / TIMES).write_text(json.dumps(line["times"]) + "\n")
    content = {"rows": line["rows"], "provenance": line["provenance"]}
    storage.write_bytes_atomic(run / RESULT, (json.dumps(content, indent=1) + "\n").encode())


def _put_sessions(output: Path, sessions: list[Record]) -> None:
    """What the report tells of how the results came about; before the sessions of this machine, if there are none."""
    folder = output / "sessions"
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        return
    for number, session in enumerate(sessions, 1):
        content = {name: value for name, value in session.items() if name != "kind"}
        storage.write_bytes_atomic(
            folder / f"{number:03d}.json", (json.dumps(content, indent=1) + "\n").encode()
        )
