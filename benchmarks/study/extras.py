"""Figures 3 to 5, and what the paper does not show: cold items, missing modalities, users by activity, splits."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gnnmr_dist.config import Settings
from gnnmr_dist.fusion import LINEAR
from study.figures import Points, case, curves
from study.page import Page
from study.plan import COLD, REFERENCE, SPLITS, Job, share_missing
from study.results import CHANCE, Entry, Findings, among_cold
from study.significance import mean_and_deviation
from study.tables import TESTED, cells, gain_row, gains, paired, plain_jobs

SHOWN = ("concatenation", "aligned-average", "average", "fused")
"""Rows of GNNMR in plots; every modality's own values are in the result files."""

ACTIVITY = ((0, 0), (1, 4), (5, 9), (10, 19), (20, 49), (50, 199), (200, math.inf))
"""Groups of users by number of train interactions, both ends included."""

CASE = "case.json"

TRAINED = (("negatives", "trained"),)
"""The values of a job that differs from the default in its negatives alone."""


def dimension(page: Page, findings: Findings) -> None:
    """Figure 3."""
    page.heading(2, "Figure 3: embedding size d")
    page.text(
        "The paper: rising with d, then steady, best at d = 256, both sets (**other data**; its curve is "
        "a picture, so there are no values to put beside these)."
    )
    _sensitivity(page, findings, "dimension", "embedding_dim", "d", "log2")


def weight(page: Page, findings: Findings) -> None:
    """Figure 4."""
    page.heading(2, "Figure 4: lambda, the weight of mutual learning")
    page.text(
        "The paper: good from .5 to 1, best at .5, both sets, of .1, .5, 1 and 2 (**other data**; a "
        "picture without values). Here 0 is shown as well."
    )
    _sensitivity(page, findings, "lambda", "distill_weight", "lambda", "places")


def _sensitivity(page: Page, findings: Findings, part: str, setting: str, label: str, scale: str) -> None:
    _unless_planned(page, findings, part)
    for name in findings.plan.sets:
        jobs = [job for job in findings.plan.part(part).jobs if job.set == name]
        if not jobs:
            continue
        page.heading(3, name)
        by_value: dict[float, list[Job]] = {}
        for job in jobs:
            by_value.setdefault(_value(findings, job, setting), []).append(job)
        entries = {x: _own_rows(findings, some) for x, some in sorted(by_value.items())}
        panels = {metric: _lines(entries, metric) for metric in TESTED}
        if any(panels.values()):
            alt = f"{' and '.join(TESTED)} over {label} on {name}; bars: deviation over seeds"
            page.picture(f"{part}-{name}.png", curves(panels, label, scale=scale), alt)
        page.table((label, *(f"{row}, {m}" for m in TESTED for row in SHOWN), "seeds"), _value_rows(entries))


def _unless_planned(page: Page, findings: Findings, part: str) -> None:
    if not findings.plan.part(part).jobs:
        page.text("Not in this plan.")


def _value(findings: Findings, job: Job, setting: str) -> float:
    settings: Settings = findings.plan.settings(job)
    return float(getattr(settings.model if setting == "embedding_dim" else settings.loss, setting))


def _own_rows(findings: Findings, jobs: Sequence[Job]) -> dict[str, Entry]:
    return {entry.row: entry for entry in findings.entries(jobs) if entry.method == "gnnmr"}


def _lines(entries: dict[float, dict[str, Entry]], metric: str) -> dict[str, Points]:
    lines: dict[str, dict[float, tuple[float, float]]] = {}
    for x, rows in entries.items():
        for row in SHOWN:
            if row in rows and rows[row].results:
                mean, deviation = mean_and_deviation(rows[row].values(metric))
                lines.setdefault(row, {})[x] = (mean, 0.0 if math.isnan(deviation) else deviation)
    return dict(lines)


def _value_rows(entries: dict[float, dict[str, Entry]]) -> list[tuple[str, ...]]:
    rows = []
    for x, found in entries.items():
        some = [found[row].cell(metric) if row in found else "-" for metric in TESTED for row in SHOWN]
        done = next((entry.seeds for entry in found.values() if entry.results), None)
        rows.append((f"{x:g}", *(some if done else ["not run"] * len(some)), done or "0"))
    return rows


def funds(page: Page, findings: Findings) -> None:
    """Figure 5, from the file that the runner left."""
    page.heading(2, "Figure 5: a case study on the funds")
    file = findings.output / CASE
    if not file.exists():
        page.text("Not run.")
        return
    found = json.loads(file.read_text())
    page.text(
        "Funds chosen by a rule, not by their results: the fewest train holdings (at least "
        f"{found['rule']['least']}) among those with at least {found['rule']['truth']} test holdings. Row "
        f"`{found['row']}`, seed {found['seed']}, top {found['rule']['k']}. Colours: sectors "
        f"({found['rule']['column']}). Red frame: recommended and held in truth; dashed: recommended, not "
        "in the test holdings. The paper's Figure 5 shows a fund company of its own data."
    )
    page.picture(
        "case.png", case(found["funds"], found["sectors"]), "history, truth and recommendations by sector"
    )
    rows = []
    for fund in found["funds"]:
        held = {box["sector"] for box in fund["history"]}
        same = sum(box["sector"] in held for box in fund["lists"])
        hits = sum(box["hit"] for box in fund["lists"])
        rows.append(
            (fund["user"], *(str(len(fund[key])) for key in ("history", "truth")), str(hits), str(same))
        )
    page.table(("fund", "held", "truth", f"hits in {found['rule']['k']}", "of a sector it holds"), rows)


def cold(page: Page, findings: Findings) -> None:
    """Items held out with all their interactions."""
    page.heading(2, "Cold items")
    page.text(
        "A fifth of the items held out with all their interactions, half of them for validation and half "
        "for test; full ranking, so cold items compete with all warm ones the user has not seen. The "
        "networks of GNNMR know them by features alone, without ID vectors, and so does its linear peer; a "
        "method without features can do no better than chance among them, and popularity gives them nothing."
    )
    _by_variant(page, findings, "cold", [COLD])
    _among_cold(page, findings)


def _among_cold(page: Page, findings: Findings) -> None:
    """A table per set of all jobs on cold items, of any part; results without this ranking are told as not run."""
    page.heading(3, "Among cold items only")
    page.text(
        "The same models, but nothing except items without a train interaction is ranked: how well they are told "
        "apart, whatever lies between their scores and those of warm items. A method that cannot tell them apart "
        "ranks them by number, which in these sets goes with popularity. By chance: what a random order finds."
    )
    metrics = [among_cold(metric) for metric in TESTED]
    for name in findings.plan.sets:
        groups: dict[tuple[str, tuple[tuple[str, Any], ...]], list[Job]] = {}
        for job in findings.plan.ranked():
            if (job.set, job.variant) == (name, COLD):
                groups.setdefault((job.method, job.values), []).append(job)
        entries = [
            _ranked_among(e, values) for (_, values), jobs in groups.items() for e in findings.entries(jobs)
        ]
        done = [entry for entry in entries if entry.results]
        if not done:
            page.text(f"{name}: not run." if groups else f"{name}: not in this plan.")
            continue
        chance = done[0].values(among_cold(TESTED[0].replace("Recall", CHANCE)))[0]
        page.table((f"{name}, by chance {chance:.4f}", *TESTED, "seeds"), cells(entries, metrics))


def _ranked_among(entry: Entry, values: Sequence[tuple[str, Any]]) -> Entry:
    """Only the results that were ranked among cold items, with the settings in the label."""
    found = tuple(r for r in entry.results if among_cold(TESTED[0]) in r.rows[entry.row])
    label = ", ".join((entry.label, *(f"{setting} {value}" for setting, value in values)))
    return replace(entry, label=label, results=found)


def negatives(page: Page, findings: Findings) -> None:
    """Negatives and candidates from all items, or from those with a train interaction."""
    page.heading(2, "Negatives from trained items")
    page.text(
        "An item without train interactions can be drawn as a negative and never be a positive: what looks like it is "
        "learnt to be bad. `negatives trained` draws only items with a train interaction; the default draws all. "
        "Gain = trained minus all, intervals as in Table 5. On the sets' own splits too some items are without."
    )
    _unless_planned(page, findings, "negatives")
    both = dict.fromkeys((job.set, job.variant) for job in findings.plan.part("negatives").jobs)
    for name, variant in both:
        jobs = [j for j in findings.plan.part("negatives").jobs if (j.set, j.variant) == (name, variant)]
        page.heading(3, f"{name}, {variant}")
        found = paired(
            findings, [j for j in jobs if j.plain or j.values == TRAINED], lambda job: not job.plain
        )
        if not found:
            page.text("Not run.")
            continue
        gains(page, TESTED[0], found, ("all", "trained"))
        if pairs := paired(
            findings, [j for j in jobs if set(TRAINED) <= set(j.values)], lambda job: job.values == TRAINED
        ):
            page.text("With and without mutual learning, negatives from trained items:")
            gains(page, TESTED[0], pairs)


def protocol(page: Page, findings: Findings) -> None:
    """One set, several splits."""
    page.heading(2, "Split protocol")
    page.text(
        "The same interactions split 8:1:1 at random, by each user's time, and at two moments for all. "
        "With a global cut, test users may have no train interactions, and what is popular changes; "
        "values of different splits are not comparable, the order of the methods is."
    )
    _by_variant(page, findings, "protocol", [name for name in SPLITS if name != COLD])


def _by_variant(page: Page, findings: Findings, part: str, variants: Sequence[str]) -> None:
    _unless_planned(page, findings, part)
    for name in findings.plan.sets:
        for variant in variants:
            jobs = plain_jobs(findings, part, name, variant)
            if not jobs:
                continue
            entries = findings.entries(jobs)
            page.heading(3, f"{name}, {variant}")
            page.table(("method", *TESTED, "seeds"), cells(entries, TESTED))
            wanted = (name, variant, REFERENCE)
            own = [j for j in findings.plan.part(part).jobs if (j.set, j.variant, j.method) == wanted]
            if pairs := paired(findings, own):
                page.text("With and without mutual learning, intervals as in Table 5:")
                gains(page, TESTED[0], pairs)


def tuned(page: Page, findings: Findings) -> None:
    """GNNMR with settings of one set, chosen on its validation, beside the defaults."""
    page.heading(2, "Tuned for one set")
    page.text(
        "Everywhere else GNNMR has one file of defaults. Here it has settings that were chosen for this set, on its "
        "validation split (docs/decisions.md), all else equal."
    )
    _unless_planned(page, findings, "tuned")
    for name in findings.plan.sets:
        jobs = [job for job in findings.plan.part("tuned").jobs if job.set == name]
        for values in dict.fromkeys(job.values for job in jobs):
            page.heading(3, ", ".join((name, *(f"{setting} {value}" for setting, value in values))))
            entries = findings.entries([job for job in jobs if job.values == values])
            page.table(("row", *TESTED, "seeds"), cells(entries, TESTED))


def missing(page: Page, findings: Findings) -> None:
    """Rows of every modality dropped at random, with and without mutual learning."""
    page.heading(2, "Missing modalities")
    page.text(
        "Of every modality a share of its rows dropped at random, independently of the other modalities, "
        "on top of those that are missing anyway; what 10 % miss, 30 % miss too. Gain = with mutual "
        "learning minus lambda 0, intervals as in Table 5."
    )
    metric = TESTED[0]
    _unless_planned(page, findings, "missing")
    for name in findings.plan.sets:
        jobs = [job for job in findings.plan.part("missing").jobs if job.set == name]
        shares: dict[float, list[Job]] = {}
        for job in jobs:
            shares.setdefault(share_missing(job.variant) or 0.0, []).append(job)
        if not shares:
            continue
        page.heading(3, f"{name}, {metric}")
        rows, lines = [], dict[str, dict[float, tuple[float, float]]]()
        for share, some in sorted(shares.items()):
            pairs = paired(findings, some)
            for row in [row for row in pairs if row != LINEAR] or ["-"]:
                rows.append(_missing_row(share, row, metric, *pairs.get(row, ())))
            for row in ("concatenation", "fused"):
                for what, entry in zip(("lambda 0", "with"), pairs.get(row, ()), strict=False):
                    mean, deviation = mean_and_deviation(entry.values(metric))
                    point = (mean, 0.0 if math.isnan(deviation) else deviation)
                    lines.setdefault(f"{row}, {what}", {})[100 * share] = point
        if lines:
            alt = f"{metric} over dropped rows on {name}"
            page.picture(f"missing-{name}.png", curves({metric: lines}, "% of rows dropped"), alt)
        columns = ("lambda 0", "with", "gain", "interval, seeds", "interval, users", "seeds")
        page.table(("dropped", "row", *columns), rows)


def _missing_row(share: float, row: str, metric: str, *pair: Entry) -> tuple[str, ...]:
    if not pair:
        return f"{share:.0%}", row, "not run", "not run", "-", "-", "-", "0"
    return f"{share:.0%}", *gain_row(row, metric, *pair)


def activity(page: Page, findings: Findings) -> None:
    """Headline rows by users' number of train interactions."""
    page.heading(2, "Users by activity")
    metric = TESTED[0]
    page.text(
        f"{metric} of the runs of Tables 3 and 4 by the user's number of train interactions; n = users "
        "with test items. Values are means over the users of a group, averaged over seeds. Bold: best of "
        "its column."
    )
    for name in findings.plan.sets:
        degree = findings.activity(name)
        entries = [
            e for e in findings.entries(plain_jobs(findings, "tables", name)) if e.headline and e.results
        ]
        page.heading(3, name)
        if not entries or not degree:
            page.text("Not run.")
            continue
        table = {entry.label: _groups(*entry.users(metric), degree) for entry in entries}
        heads = next(iter(table.values()))
        best = {head: max(values[head][0] for values in table.values()) for head in heads}
        rows = [
            (label, *(f"**{v:.4f}**" if v == best[head] else f"{v:.4f}" for head, (v, _) in values.items()))
            for label, values in table.items()
        ]
        page.table(("method", *(f"{head} (n {count})" for head, (_, count) in heads.items())), rows)


def _groups(ids: np.ndarray, values: np.ndarray, degree: dict[object, int]) -> dict[str, tuple[float, int]]:
    """Group's name -> (mean over its users, how many), groups without users left out."""
    counts = np.array([degree[user] for user in ids.tolist()])
    groups = {}
    for low, high in ACTIVITY:
        inside = (counts >= low) & (counts <= high)
        if inside.any():
            text = f"{low}" if low == high else f"{low}+" if math.isinf(high) else f"{low} to {high:.0f}"
            groups[text] = (float(values[inside].mean()), int(inside.sum()))
    return groups
