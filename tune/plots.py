"""Pictures of a sweep: sensitivity (as the paper's Figures 3 and 4), parallel coordinates, learning curves.

Drawn with matplotlib's Agg canvas, straight to PNG; no window and no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from gnnmr_dist import storage
from gnnmr_dist.config import Settings
from tune.history import Validation
from tune.record import Record
from tune.space import Choice, Domain, Space, shown

SYMBOLS = {"distill_weight": "lambda (distill_weight)", "embedding_dim": "d (embedding_dim)"}
DONE, STOPPED, LEADER = "#1f4e79", "#9aa5b1", "#c0392b"


@dataclass(frozen=True)
class Line:
    """A point of the sweep as the plots see it; ``metrics`` at the best epochs, empty where there was no validation."""

    point: int
    values: Mapping[str, Any]
    status: str
    metrics: Mapping[str, float]
    histories: Sequence[Sequence[Validation]]


@dataclass(frozen=True)
class Scale:
    """Where a setting's values stand on an axis, and what is written there."""

    positions: Mapping[Any, float] | None
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: Any) -> float:
        """The position of a value."""
        return float(value) if self.positions is None else self.positions[value]


def scale_of(domain: Domain) -> Scale:
    """Numbers by size, on a log axis when they span a factor of 16 or more; all else one beside the other."""
    if not isinstance(domain, Choice):
        return Scale(None, domain.log, ())
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in domain.values)
    if not numeric:
        ticks = tuple((float(n), shown(value)) for n, value in enumerate(domain.values))
        return Scale({value: float(n) for n, value in enumerate(domain.values)}, False, ticks)
    log = min(domain.values) > 0 and max(domain.values) >= 16 * min(domain.values)
    return Scale(None, log, tuple((float(value), shown(value)) for value in domain.values))


def draw_all(record: Record, space: Space, lines: Sequence[Line], base: Settings) -> list[str]:
    """Draw what there is something to draw for; returns the names of the PNG files in the sweep's directory.

    Args:
        lines: the best first.
    """
    known = [line for line in lines if line.metrics]
    if not known:
        return []
    metric = base.evaluation.select_metric
    figures = {
        f"sensitivity-{name}.png": sensitivity(name, domain, known, panels(metric, known[0].metrics))
        for name, domain in space.domains.items()
    }
    if len(space.domains) > 1:
        figures["parallel.png"] = parallel(space, known, metric)
    figures["curves.png"] = curves(known, metric)
    for name, figure in figures.items():
        target = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(target, format="png", dpi=90)
        storage.write_bytes_atomic(record.place(name), target.getvalue())
    return list(figures)


def panels(metric: str, known: Mapping[str, float]) -> list[str]:
    """The selecting metric, with Recall and NDCG at its cut-off as the paper shows them."""
    k = metric.partition("@")[2]
    return [name for name in dict.fromkeys((metric, f"Recall@{k}", f"NDCG@{k}")) if name in known]


def sensitivity(name: str, domain: Domain, lines: Sequence[Line], metrics: Sequence[str]) -> Figure:
    """One panel per metric: every point, and through the best at each value of the setting a line."""
    figure = Figure(figsize=(4.6 * len(metrics), 3.4), layout="constrained")
    scale = scale_of(domain)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for status, colour, marker in (("finished", DONE, "o"), ("stopped", STOPPED, "x")):
            some = [line for line in lines if (line.status == "finished") == (status == "finished")]
            places = [scale.place(line.values[name]) for line in some]
            axes.scatter(
                places, [line.metrics[metric] for line in some], c=colour, marker=marker, s=22, zorder=3
            )
            axes.plot([], [], marker=marker, color=colour, linestyle="", label=status)
        best: dict[float, float] = {}
        for line in lines:
            place = scale.place(line.values[name])
            best[place] = max(best.get(place, 0.0), line.metrics[metric])
        if isinstance(domain, Choice):
            axes.plot(*zip(*sorted(best.items()), strict=True), color=DONE, linewidth=1.2, label="best")
        _lay_axis(axes, scale)
        axes.set_xlabel(SYMBOLS.get(name, name))
        axes.set_title(f"validation {metric}", fontsize=10)
        axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="best")
    return figure


def _lay_axis(axes: Any, scale: Scale) -> None:
    if scale.log:
        axes.set_xscale("log")
    if scale.ticks:
        axes.set_xticks([at for at, _ in scale.ticks], [label for _, label in scale.ticks], fontsize=8)
        axes.minorticks_off()


def parallel(space: Space, lines: Sequence[Line], metric: str) -> Figure:
    """One axis per setting and the metric as the last; colour is the metric, the best is drawn thick."""
    scales = {name: scale_of(domain) for name, domain in space.domains.items()}
    columns: list[list[float]] = []
    for name, scale in scales.items():
        raw = [scale.place(line.values[name]) for line in lines]
        columns.append([math.log(v) for v in raw] if scale.log else raw)
    values = [line.metrics[metric] for line in lines]
    columns.append(values)
    colours: Any = ScalarMappable(Normalize(min(values), max(values)), "viridis")
    figure = Figure(figsize=(1.9 * len(columns) + 1.2, 3.8), layout="constrained")
    axes = figure.subplots()
    heights = [_unit(column) for column in columns]
    for n in reversed(range(len(lines))):
        axes.plot(
            [height[n] for height in heights],
            color=colours.to_rgba(values[n]),
            linewidth=3 if n == 0 else 1,
            linestyle="-" if lines[n].status == "finished" else ":",
        )
    for n, (name, scale) in enumerate(scales.items()):
        axes.axvline(n, color="black", linewidth=0.8)
        for at, label in _marks(columns[n], [line.values[name] for line in lines], scale):
            axes.text(n + 0.03, at, label, fontsize=7, va="center")
    axes.axvline(len(scales), color="black", linewidth=0.8)
    axes.set_xticks(range(len(columns)), [*scales, metric], fontsize=8, rotation=15)
    axes.set_yticks([])
    axes.set_title("dotted: stopped early", fontsize=9)
    figure.colorbar(colours, ax=axes, label=f"validation {metric}")
    return figure


def _unit(column: Sequence[float]) -> list[float]:
    """A column moved and scaled to 0..1; a constant one lies in the middle."""
    low, high = min(column), max(column)
    return [(value - low) / (high - low) if high > low else 0.5 for value in column]


def _marks(column: Sequence[float], values: Sequence[Any], scale: Scale) -> list[tuple[float, str]]:
    """Heights and labels on an axis: every value of a list, the two ends of a range."""
    marks = sorted(set(zip(_unit(column), map(shown, values), strict=True)))
    return marks if scale.ticks else [marks[0], marks[-1]]


def curves(lines: Sequence[Line], metric: str) -> Figure:
    """The metric over epochs, one line per trial; a cross where a trial was stopped; the best in red."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    leader = next((line for line in lines if line.status == "finished"), lines[0])
    for line in reversed(lines):
        colour = LEADER if line is leader else DONE if line.status == "finished" else STOPPED
        for history in line.histories:
            epochs, values = [v.epoch for v in history], [v.metrics[metric] for v in history]
            axes.plot(epochs, values, color=colour, linewidth=2 if line is leader else 0.9, alpha=0.9)
            if line.status != "finished" and epochs:
                axes.plot(epochs[-1], values[-1], marker="x", color=colour, markersize=5)
    for colour, label in (
        (LEADER, "best finished"),
        (DONE, "finished"),
        (STOPPED, "stopped (x) or not finished"),
    ):
        axes.plot([], [], color=colour, label=label)
    axes.set_xlabel("epochs")
    axes.set_ylabel(f"validation {metric}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    return figure
