"""A study's results in a form small enough to stand beside its report: any machine can go on from them.

records.jsonl      a line for each session, each finished job (settings, commit, times, rows, versions) and the case
users-SET.parquet  of every finished job, row and user the values that tests and intervals are made of
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist import storage
from study.case import CASE
from study.plan import Plan
from study.results import METRICS, USERS, Findings, Result
from study.runner import description, home_of
from study.tables import TESTED
from study.worker import RESULT, RUN, TIMES

RECORDS = "records.jsonl"
PLACES = ("run", "settings", "dataset")
"""What of a result's provenance says where things lay on its machine."""


def save(findings: Findings, folder: Path) -> None:
    """Write everything that is there."""
    results = [found for job in findings.plan.ranked() if (found := findings.get(job)) is not None]
    lines: list[dict[str, Any]] = [{"kind": "session", **session} for session in findings.sessions()]
    lines += [_record(findings.plan, result) for result in results]
    case = findings.output / CASE
    if case.exists():
        lines.append({"kind": "case", "case": json.loads(case.read_text(encoding="utf-8"))})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    folder.mkdir(parents=True, exist_ok=True)
    for name in findings.plan.sets:
        tables = [_users(result) for result in results if result.job.set == name]
        if tables:
            with storage.staged_file(str(folder / f"users-{name}.parquet")) as staged:
                pq.write_table(
                    pa.concat_tables(tables), str(staged), compression="zstd", compression_level=15
                )
    storage.write_bytes_atomic(folder / RECORDS, text.encode())


def _record(plan: Plan, result: Result) -> dict[str, Any]:
    wanted = [f"{metric}@{k}" for metric in ("Recall", "NDCG") for k in result.content["provenance"]["ks"]]
    origin = {name: value for name, value in result.content["provenance"].items() if name not in PLACES}
    return {
        "kind": "job",
        "name": result.job.name,
        "job": description(plan, result.job),
        "times": result.times,
        "epochs": result.epochs,
        "rows": {row: {name: values[name] for name in wanted} for row, values in result.rows.items()},
        "provenance": origin,
    }


def _users(result: Result) -> pa.Table:
    table = pq.read_table(result.home / RUN / USERS, columns=["user", "row", *TESTED])
    single = {name: table[name].cast(pa.float32()) for name in TESTED}
    job = pa.array([result.job.name] * table.num_rows).dictionary_encode()
    return pa.table({"job": job, "row": table["row"].cast(pa.string()), "user": table["user"], **single})


def take_up(plan: Plan, folder: Path, output: Path) -> int:
    """Put what FOLDER has of the plan's jobs into an OUTPUT that has none; returns how many.

    Jobs of other settings are left. Metrics that were not kept are missing afterwards, and so are the models.
    """
    if not (folder / RECORDS).exists() or (output / "jobs").exists():
        return 0
    lines = [json.loads(line) for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines()]
    jobs, taken = {job.name: job for job in plan.ranked()}, 0
    files = {name: folder / f"users-{name}.parquet" for name in plan.sets}
    users = {name: pq.read_table(file) for name, file in files.items() if file.exists()}
    for line in lines:
        job = jobs.get(line["name"]) if line["kind"] == "job" else None
        if job is not None and line["job"] == description(plan, job) and job.set in users:
            table = users[job.set]
            _put(home_of(output, job), line, table.filter(pa.compute.equal(table["job"], job.name)))
            taken += 1
    _put_others(output, lines)
    return taken


def _put(home: Path, line: dict[str, Any], users: pa.Table) -> None:
    """A job's files as a run leaves them; what says that it is done comes last."""
    run = home / RUN
    run.mkdir(parents=True)
    epochs = [{"kind": "epoch", "epoch": n, "seconds": seconds} for n, seconds in enumerate(line["epochs"])]
    (run / METRICS).write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    pq.write_table(users.drop_columns("job"), run / USERS)
    (home / "job.json").write_text(json.dumps(line["job"]) + "\n")
    if line["times"]:
        (home / TIMES).write_text(json.dumps(line["times"]) + "\n")
    content = {"rows": line["rows"], "provenance": line["provenance"]}
    storage.write_bytes_atomic(run / RESULT, (json.dumps(content, indent=1) + "\n").encode())


def _put_others(output: Path, lines: list[dict[str, Any]]) -> None:
    """Sessions, so that the report tells of them, and the case, whose model is not there."""
    sessions = [line for line in lines if line["kind"] == "session"]
    (output / "sessions").mkdir(parents=True, exist_ok=True)
    for number, session in enumerate(sessions, 1):
        content = {name: value for name, value in session.items() if name != "kind"}
        (output / "sessions" / f"{number:03d}.json").write_text(json.dumps(content, indent=1) + "\n")
    for line in lines:
        if line["kind"] == "case":
            (output / CASE).write_text(json.dumps(line["case"], indent=1, ensure_ascii=False) + "\n", "utf-8")
