"""The report of a study, made from its result files alone: what was found, at what cost, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from study import extras, tables
from study.page import Page
from study.results import Entry, Findings

NAME = "paper"


def build(findings: Findings, data: Path | None) -> Page:
    """The whole page; ``data`` is only asked for published values that stand beside the raw files."""
    page = Page()
    page.heading(1, "The study: GNNMR beside other methods")
    _origin(page, findings)
    _protocol(page, findings)
    tables.accuracy(page, findings, data)
    tables.significance(page, findings)
    tables.mutual(page, findings)
    extras.tuned(page, findings)
    extras.dimension(page, findings)
    extras.weight(page, findings)
    extras.funds(page, findings)
    extras.cold(page, findings)
    extras.negatives(page, findings)
    extras.missing(page, findings)
    extras.activity(page, findings)
    extras.protocol(page, findings)
    _cost(page, findings)
    _not_run(page, findings)
    return page


def _origin(page: Page, findings: Findings) -> None:
    sessions = findings.sessions()
    if not sessions:
        page.text("No job was run.")
        return
    for what in ("command", "hardware", "commit"):
        every = list(dict.fromkeys(session[what] for session in sessions))
        page.text(f"{what.capitalize()}: " + "; ".join(f"`{value}`" for value in every) + ".")
    if len({session["commit"] for session in sessions}) > 1:
        page.text("**Several commits**: see `times.json` of each job for the one that made it.")
    hours = sum(session["seconds"] for session in sessions) / 3600
    done, missing = len(findings.plan.ranked()) - len(findings.missing()), len(findings.missing())
    page.text(
        f"{_date(sessions[0]['started'])} to {_date(sessions[-1]['started'] + sessions[-1]['seconds'])}, "
        f"wall time {hours:.2f} h in {len(sessions)} session{'s' * (len(sessions) > 1)} (of one that was "
        f"killed: until its last finished job). {done} jobs done, "
        f"{missing} not run" + (" (listed at the end)." if missing else ".")
    )


def _protocol(page: Page, findings: Findings) -> None:
    defaults = ", ".join(f"{name} {value}" for name, value in findings.plan.defaults.items())
    page.text(
        "Test split, read once per run; full ranking of all items, train items masked, popularity x 1e-6 "
        "added to every score; users without train interactions count. Values: mean ± sample deviation "
        "over seeds (of training; the split of a set is one). Every setting is the package's default for "
        "the method, nothing tuned per set but in the part that says so; early stopping on validation "
        "Recall@20. Shared by all jobs: "
        f"{defaults or 'nothing else'}. One process with one thread per job, as many jobs at once as "
        "told. Popularity, item-kNN and EASE have no seed."
    )
    rows = []
    for name, found in findings.plan.sets.items():
        result = next(
            (
                r
                for j in findings.plan.ranked()
                if j.set == name and j.variant == "own" and (r := findings.get(j))
            ),
            None,
        )
        origin: Mapping[str, Any] = result.content["provenance"] if result else {}
        rows.append(
            (
                name,
                found.recipe or "planted",
                str(origin.get("users_evaluated", "not run")),
                str(origin.get("users_without_train", "")),
                str(origin.get("data_digest", ""))[:12],
            )
        )
    page.table(("set", "made by", "test users", "without train", "digest"), rows)


def _cost(page: Page, findings: Findings) -> None:
    page.heading(2, "Cost")
    page.text(
        "Means over the seeds of Tables 3 and 4; an epoch without its validation; other jobs ran beside these. "
        "A best epoch close to the largest allowed number of epochs means that the method was still improving."
    )
    rows = []
    for name in findings.plan.sets:
        for entry in findings.entries(tables.plain_jobs(findings, "tables", name)):
            trained = entry.results and entry.method == entry.results[0].job.method
            if entry.headline and trained:
                rows.append((f"{name}, {entry.method}", *_cost_cells(entry)))
    page.table(("job", "epochs", "best epoch", "seconds an epoch", "seconds a job"), rows)


def _cost_cells(entry: Entry) -> tuple[str, str, str, str]:
    runs = entry.results
    epochs = [seconds for run in runs for seconds in run.epochs]
    times = [run.times.get(step, 0.0) for run in runs for step in ("train", "evaluate")]
    best = [run.content["provenance"]["best_epoch"] for run in runs]
    return (
        f"{len(epochs) / len(runs):.1f}",
        f"{sum(best) / len(runs):.1f}",
        f"{sum(epochs) / max(len(epochs), 1):.2f}",
        f"{sum(times) / len(runs):.0f}",
    )


def _not_run(page: Page, findings: Findings) -> None:
    page.heading(2, "Not run")
    missing = findings.missing()
    if not missing:
        page.text("Nothing: every job of the plan has a result.")
        return
    sessions = findings.sessions()
    failed = {name: why for session in sessions for name, why in session["failed"].items()}
    left_out = sessions[-1]["left_out"] if sessions else []
    absent = sessions[-1]["absent"] if sessions else []
    rows: dict[str, list[str]] = {}
    for job in missing:
        why = failed.get(job.name) or "not reached"
        if job.name in left_out:
            why = "the budget had no room"
        elif job.set in absent:
            why = "its raw files were not given"
        rows.setdefault(f"{job.group}: {why}", []).append(str(job.seed))
    page.table(("jobs: reason", "seeds"), [(name, ", ".join(seeds)) for name, seeds in rows.items()])


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
