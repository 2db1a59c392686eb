"""Tables 3, 4 and 5 of the report: every method on every set, who differs, and what mutual learning changes."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from study.page import Page
from study.plan import REFERENCE, Job
from study.results import Entry, Findings
from study.significance import bootstrap_interval, holm, mean_and_deviation, paired_t, t_interval

K = 20
TESTED = (f"Recall@{K}", f"NDCG@{K}")
ALPHA = 0.05
LOGS = "published_results.csv"


@cache
def published() -> dict[str, Any]:
    """The paper's values by set and table."""
    return tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))


def accuracy(page: Page, findings: Findings, data: Path | None) -> None:
    """Tables 3 and 4, each set beside the published values of the same kind."""
    for number, metric in ((3, "Recall"), (4, "NDCG")):
        page.heading(2, f"Table {number}: {metric}")
        for name, found in findings.plan.sets.items():
            entries = findings.entries(plain_jobs(findings, "tables", name))
            page.heading(3, f"{name}, {metric}")
            page.table(("method", *columns(metric, entries), "seeds"), metric_rows(metric, entries))
            if found.published is not None:
                _paper_table(page, number, metric, found.published)
            elif data is not None and (data / name / LOGS).exists():
                _logs_table(page, metric, data / name / LOGS)


def plain_jobs(findings: Findings, part: str, set_name: str, variant: str = "own") -> list[Job]:
    """The jobs of a part that run their method as it comes, on one variant of one set."""
    jobs = findings.plan.part(part).jobs
    return [job for job in jobs if job.set == set_name and job.variant == variant and job.plain]


def columns(metric: str, entries: Sequence[Entry]) -> list[str]:
    """``metric`` at every cut-off there is."""
    ks = next(
        (entry.results[0].content["provenance"]["ks"] for entry in entries if entry.results), (10, 20, 50)
    )
    return [f"{metric}@{k}" for k in ks]


def metric_rows(metric: str, entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """One row per entry with its values and seeds; the best mean of a column is bold."""
    return cells(entries, columns(metric, entries))


def cells(entries: Sequence[Entry], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """Label, each metric as ``mean ± deviation``, seeds; the best mean of a column is bold."""
    best = {
        metric: max((mean_and_deviation(e.values(metric))[0] for e in entries if e.results), default=None)
        for metric in metrics
    }
    rows = []
    for entry in entries:
        row = [entry.label]
        for metric in metrics:
            top = entry.results and mean_and_deviation(entry.values(metric))[0] == best[metric]
            row.append(f"**{entry.cell(metric)}**" if top else entry.cell(metric))
        rows.append((*row, entry.seeds))
    return rows


def _paper_table(page: Page, number: int, metric: str, name: str) -> None:
    page.text(
        f"The paper's Table {number}, its {name} set: **other data**, so only the order of the methods "
        "compares."
    )
    rows = [(label, *(f"{v:.4f}" for v in values)) for label, values in published()[name][metric].items()]
    page.table((f"published, {name}", *(f"{metric}@{k}" for k in (10, 20, 50))), rows)


def _logs_table(page: Page, metric: str, file: Path) -> None:
    with open(file, encoding="utf-8", newline="") as lines:
        records = list(csv.DictReader(lines))
    names = [f"{metric.lower()}@{k}" for k in (10, 20)]
    page.text(
        f"Published on this very split: the final test lines of a course project's logs ({file.name} "
        "beside the data), one run each, not a peer-reviewed paper; train items masked, as here."
    )
    rows = [(record["model"], *(f"{float(record[name]):.4f}" for name in names)) for record in records]
    page.table(("published, same split", *(f"{metric}@{k}" for k in (10, 20))), rows)


def significance(page: Page, findings: Findings) -> None:
    """GNNMR's headline row, and its networks without the linear peer, against every other method, per set."""
    page.heading(2, "Paired tests over users")
    page.text(
        "Difference = a row of GNNMR minus the method: first its headline (`fused` where it has one), then "
        "its networks alone (`concatenation`); paired t-test over users, each user's value averaged over "
        "seeds first; p after Holm's correction over the "
        f"methods of a set and metric; bold: below {ALPHA}. The t-test because the tables report means "
        "and the test is about means; with hundreds of users the skew of Recall and NDCG does no harm, "
        "while Wilcoxon's test would be about the symmetry of the differences. "
        "The test says whether other users would agree, not whether other seeds would."
    )
    for name in findings.plan.sets:
        entries = [e for e in findings.entries(plain_jobs(findings, "tables", name)) if e.headline]
        others = [e for e in entries if e.method != REFERENCE and e.results]
        page.heading(3, name)
        if not others or not any(e.method == REFERENCE and e.results for e in entries):
            page.text("Not run: it needs GNNMR and one other method.")
            continue
        for own in _references(findings, name):
            _tests(page, own, others)


def _references(findings: Findings, name: str) -> list[Entry]:
    """GNNMR's headline row and, where that is another one, its networks alone (the concatenation)."""
    entries = findings.entries(plain_jobs(findings, "tables", name))
    rows = [e for e in entries if e.method == REFERENCE and e.results]
    return [e for e in rows if e.headline] + [e for e in rows if e.row == "concatenation" and not e.headline]


def _tests(page: Page, own: Entry, others: Sequence[Entry]) -> None:
    page.text(f"`{own.label}` against each method, {own.users(TESTED[0])[0].size} users.")
    tested = {metric: comparisons(own, others, metric) for metric in TESTED}
    names = [f"{what} {metric}" for metric in TESTED for what in ("difference", "p (Holm)")]
    rows = [
        (other.label, *(cell for metric in TESTED for cell in _tested_cells(*tested[metric][place])))
        for place, other in enumerate(others)
    ]
    page.table((f"{own.row} minus", *names), rows)


def comparisons(own: Entry, others: Sequence[Entry], metric: str) -> list[tuple[float, float]]:
    """Mean difference over users and Holm's p of ``own`` against each other entry."""
    ids, mine = own.users(metric)
    differences, p = [], []
    for other in others:
        their_ids, theirs = other.users(metric)
        assert np.array_equal(ids, their_ids), "one variant has one list of evaluated users"
        differences.append(float((mine - theirs).mean()))
        p.append(paired_t(mine, theirs))
    return list(zip(differences, holm(p), strict=True))


def _tested_cells(difference: float, p: float) -> tuple[str, str]:
    shown = "< 1e-10" if p < 1e-10 else f"{p:.2g}"
    return f"{difference:+.4f}", f"**{shown}**" if p < ALPHA else shown


def mutual(page: Page, findings: Findings) -> None:
    """Table 5: each modality and ensemble with and without mutual learning, and the gain with two intervals."""
    page.heading(2, "Table 5: mutual learning")
    page.text(
        "Gain = lambda as by default minus lambda 0, everything else equal. Two 95 % intervals: over "
        "seeds (t-interval of the gains of the same seed: would other seeds agree?) and over users "
        "(bootstrap of users, values averaged over seeds: would other users agree?). Bold: both lie on "
        "one side of 0."
    )
    for name, found in findings.plan.sets.items():
        page.heading(3, name)
        jobs = [job for job in findings.plan.part("mutual").jobs if job.set == name]
        pairs = paired(findings, jobs)
        if not pairs:
            page.text("Not run.")
            continue
        for metric in TESTED:
            gains(page, metric, pairs)
        if found.published is not None and "mutual" in published()[found.published]:
            _paper_mutual(page, found.published)


def gains(
    page: Page,
    metric: str,
    pairs: Mapping[str, tuple[Entry, Entry]],
    sides: tuple[str, str] = ("lambda 0", "with"),
) -> None:
    """One metric of every row without and with mutual learning, or other ``sides`` (:func:`paired`); its gain."""
    page.table(
        (metric, *sides, "gain", "interval, seeds", "interval, users", "seeds"),
        [gain_row(row, metric, *pairs[row]) for row in pairs],
    )


def paired(
    findings: Findings, jobs: Iterable[Job], with_it: Callable[[Job], bool] = lambda job: job.plain
) -> dict[str, tuple[Entry, Entry]]:
    """Row -> (without, with) over the seeds that both have, of jobs of one method, set and variant in two settings.

    ``with_it`` tells which jobs are the second side; by default those that run as they come.
    """
    off, on = {}, {}
    for job in jobs:
        result = findings.get(job)
        if result is not None:
            (on if with_it(job) else off)[job.seed] = result
    both = sorted(set(off) & set(on))
    if not both:
        return {}
    rows = [
        entry.row for entry in findings.entries([on[seed].job for seed in both]) if entry.method == REFERENCE
    ]
    return {
        row: (
            Entry(row, REFERENCE, row, tuple(off[seed] for seed in both), len(both)),
            Entry(row, REFERENCE, row, tuple(on[seed] for seed in both), len(both)),
        )
        for row in rows
    }


def gain_row(row: str, metric: str, off: Entry, on: Entry) -> tuple[str, ...]:
    """A row's values on both sides, the gain (bold where both intervals lie on one side of 0), intervals, seeds."""
    differences = [b - a for a, b in zip(off.values(metric), on.values(metric), strict=True)]
    seeds = t_interval(differences)
    users = bootstrap_interval(on.users(metric)[1] - off.users(metric)[1])
    gain = f"{np.mean(differences):+.4f}"
    sure = seeds[0] * seeds[1] > 0 and users[0] * users[1] > 0 and seeds[0] * users[0] > 0
    shown = f"**{gain}**" if sure else gain
    return row, off.cell(metric), on.cell(metric), shown, interval(seeds), interval(users), on.seeds


def interval(bounds: tuple[float, float]) -> str:
    """``-.0012 to +.0034``; a dash where one seed gives none."""
    return "-" if np.isnan(bounds[0]) else f"{bounds[0]:+.4f} to {bounds[1]:+.4f}"


def _paper_mutual(page: Page, name: str) -> None:
    page.text(
        f"The paper's Table 5, its {name} set: **other data**. GNNMR is GNNMR-ave; without mutual "
        "learning it is not told."
    )
    rows = []
    for row, (off, on) in published()[name]["mutual"].items():
        known = [f"{value:.4f}" for value in off] or ["-", "-"]
        rows.append((row, known[0], f"{on[0]:.4f}", known[1], f"{on[1]:.4f}"))
    page.table(
        (f"published, {name}", *(f"{metric}, {what}" for metric in TESTED for what in ("lambda 0", "with"))),
        rows,
    )
