"""What a sweep leaves: ``best.toml``, ``report.md`` with a table, plots. The test split is never read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gnnmr_dist import storage
from gnnmr_dist.config import Settings, build, to_toml
from tune.choice import Standing, best, standings
from tune.history import Validation, best_of, publish, validations
from tune.plots import Line, draw_all
from tune.record import BEST, REPORT, Record, Trial
from tune.space import described, parse_space, settings_of, shown


@dataclass(frozen=True)
class Row:
    """A point with what its trials' run directories tell; ``metrics``: means over trials at their best epochs."""

    standing: Standing
    histories: tuple[tuple[Validation, ...], ...]
    metrics: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Training and ranking, of all its trials."""
        return sum(history[-1].seconds for history in self.histories if history)

    @property
    def status(self) -> str:
        """One word for all its trials; "unfinished" while one has not ended."""
        found = {trial.ended.status if trial.ended else "unfinished" for trial in self.standing.trials}
        return next(word for word in ("unfinished", "failed", "stopped", "finished") if word in found)


def finish(record: Record, base: Settings) -> Standing | None:
    """Write everything that can be told now; returns the best point, None where none is finished yet.

    Trials that were stopped get their ``model/`` here, so that every ended trial is a run that ``evaluate`` opens.
    """
    for trial in record.trials:
        if trial.ended is not None and trial.ended.status != "failed":
            publish(record.run(trial))
    rows, chosen = rows_of(record, base), best(record.trials, record.sweep.seeds)
    if chosen is not None:
        storage.write_bytes_atomic(record.place(BEST), best_toml(record, base, chosen).encode())
    pictures = draw_all(
        record, parse_space(record.sweep.space, record.sweep.space_source), lines_of(rows), base
    )
    storage.write_bytes_atomic(record.place(REPORT), report(record, base, rows, chosen, pictures).encode())
    return chosen


def rows_of(record: Record, base: Settings) -> list[Row]:
    """All points asked for, the best mean first; points without a value last."""
    metric, rows = base.evaluation.select_metric, []
    for standing in standings(record.trials, record.sweep.seeds):
        histories = tuple(
            tuple(_until_end(trial, validations(record.run(trial)))) for trial in standing.trials
        )
        at_best = [found.metrics for history in histories if (found := best_of(history, metric)) is not None]
        names = at_best[0] if at_best else {}
        means = {name: statistics.fmean(metrics[name] for metrics in at_best) for name in names}
        rows.append(Row(standing, histories, means))
    return sorted(
        rows, key=lambda row: -1.0 if row.standing.mean is None else row.standing.mean, reverse=True
    )


def _until_end(trial: Trial, history: Sequence[Validation]) -> list[Validation]:
    """Only what counts: a stopped trial's workers may have written on until they heard of it."""
    last = trial.ended.epochs if trial.ended is not None and trial.ended.epochs else None
    return [v for v in history if last is None or v.epoch <= last]


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """What the plots need of the rows, best first."""
    return [
        Line(row.standing.point, row.standing.values, row.status, row.metrics, row.histories) for row in rows
    ]


def best_toml(record: Record, base: Settings, chosen: Standing) -> str:
    """The settings of the best point's first trial, as `train --config` takes them, and where they are from.

    Where only stopped points had a value, ``epochs`` is what that trial trained, so its number comes out again.
    """
    trial = chosen.trials[0]
    assert trial.ended is not None
    settings = settings_of(base, trial.values, trial.seed)
    if trial.ended.status == "stopped":
        settings = build(
            ("base", settings.model_dump(mode="json")),
            ("stopped", {"training": {"epochs": trial.ended.epochs}}),
        )
    metric, row, sweep = settings.evaluation.select_metric, settings.evaluation.select_row, record.sweep
    header = [
        f"Best of {len(standings(record.trials, sweep.seeds))} points tried: {described(trial.values)}.",
        f"Validation {metric} of {row} was {trial.ended.value!r} (epoch {trial.ended.best_epoch}) in {trial.name}"
        f" ({trial.ended.status}, seed {trial.seed}); `train --config` on the same data gives this number again.",
        f"Data digest {sweep.data_digest}, gnnmr-dist {sweep.versions['gnnmr-dist']}, torch {sweep.versions['torch']}.",
    ]
    return "".join(f"# {line}\n" for line in header) + to_toml(settings)


def report(
    record: Record, base: Settings, rows: Sequence[Row], chosen: Standing | None, pictures: Sequence[str]
) -> str:
    """``report.md``: what was swept, the table, the pictures."""
    sweep, metric = record.sweep, base.evaluation.select_metric
    ended = [trial.ended for trial in record.trials if trial.ended is not None]
    counts = ", ".join(
        f"{sum(e.status == word for e in ended)} {word}" for word in ("finished", "stopped", "failed")
    )
    stopping = (
        f"ASHA (from epoch {sweep.grace}, factor {sweep.reduction})" if sweep.stopper == "asha" else "none"
    )
    lines = [
        f"# Sweep of {', '.join(parse_space(sweep.space, sweep.space_source).domains)}",
        "",
        f"Search {sweep.search}, {len(rows)} points, {sweep.seeds} seed{'s' * (sweep.seeds > 1)} each, "
        f"early stopping {stopping}, at most {base.training.epochs} epochs: {counts}, "
        f"{len(record.trials) - len(ended)} unfinished; "
        f"{sum(row.seconds for row in rows):.0f} s of training in all. Values are validation {metric} of "
        f"{base.evaluation.select_row}; the test split was not read.",
        "",
        *_chosen_lines(record, rows, chosen, metric),
        f"`{' '.join(sweep.command)}`, data digest {sweep.data_digest[:12]}, "
        f"gnnmr-dist {sweep.versions['gnnmr-dist']}, torch {sweep.versions['torch']}, ray {sweep.versions['ray']}.",
        "",
        *_table(rows, metric),
        "",
        *(f"![{name.removesuffix('.png')}]({name})\n" for name in pictures),
    ]
    return "\n".join(lines)


def _chosen_lines(record: Record, rows: Sequence[Row], chosen: Standing | None, metric: str) -> list[str]:
    if chosen is None or chosen.mean is None:
        return ["No point is finished yet.", ""]
    spread = "" if chosen.deviation is None else f" +- {chosen.deviation:.4f}"
    lines = [f"Best: {described(chosen.values)}: {metric} {chosen.mean:.4f}{spread} ({BEST})."]
    ahead = [row for row in rows if row.standing.mean is not None and row.standing.mean > chosen.mean]
    if ahead:
        names = ", ".join(row.standing.trials[0].name for row in ahead)
        lines.append(f"Higher, but stopped early or not finished with all seeds, so not chosen: {names}.")
    return [*lines, ""]


def _table(rows: Sequence[Row], metric: str) -> list[str]:
    if not rows:
        return []
    names, seeds = list(rows[0].standing.values), len(rows[0].standing.trials)
    head = [
        "trial",
        *names,
        metric,
        *(["+-"] if seeds > 1 else []),
        "best epoch",
        "epochs",
        "seconds",
        "status",
    ]
    table = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 2) + "---|"]
    for row in rows:
        standing, first = row.standing, row.standing.trials[0]
        every = [trial.ended for trial in standing.trials if trial.ended is not None]
        cells = [first.name if seeds == 1 else f"{first.name} to {standing.trials[-1].number:04d}"]
        cells += [shown(standing.values[name]) for name in names]
        cells.append("-" if standing.mean is None else f"{standing.mean:.4f}")
        if seeds > 1:
            cells.append("-" if standing.deviation is None else f"{standing.deviation:.4f}")
        cells.append(" ".join(str(e.best_epoch) for e in every if e.best_epoch is not None) or "-")
        cells.append(" ".join(str(e.epochs) for e in every) or "-")
        reasons = "; ".join(e.reason for e in every if e.reason)
        cells += [f"{row.seconds:.1f}", row.status + (f": {reasons}" if reasons else "")]
        table.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return table
