"""The study's pictures, drawn with matplotlib's Agg canvas straight to PNG: no window, no global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

# Okabe and Ito's colours, which colour-blind readers can tell apart, then some more for the many sectors.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#999999")
MORE = ("#8C564B", "#9467BD", "#17BECF", "#BCBD22", "#333333")

COLUMNS = {"held (train)": "history", "truth (test)": "truth", "recommended": "lists"}
MOST_BOXES = 12

Points = Mapping[float, tuple[float, float]]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file without the time of drawing, so that the same results give the same bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def curves(panels: Mapping[str, Mapping[str, Points]], label: str, *, scale: str = "linear") -> bytes:
    """One panel per title, one line per name, points x -> (mean, deviation over seeds, 0 where there is one).

    ``scale``: "linear", "log2", or "places" = the x values side by side in order, whatever their distance.
    """
    figure = Figure(figsize=(4.2 * max(len(panels), 1), 3.4), dpi=110, layout="constrained")
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=False):
        every = sorted({x for points in lines.values() for x in points})
        for number, (name, points) in enumerate(lines.items()):
            xs = sorted(points)
            places = [every.index(x) for x in xs] if scale == "places" else xs
            means, deviations = zip(*(points[x] for x in xs), strict=True)
            color = (COLORS + MORE)[number % len(COLORS + MORE)]
            axis.errorbar(places, means, deviations, color=color, marker="o", ms=4, capsize=3, label=name)
        if scale == "log2":
            axis.set_xscale("log", base=2)
        axis.set_xticks(range(len(every)) if scale == "places" else every, [f"{x:g}" for x in every])
        axis.minorticks_off()
        axis.set_title(title)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(axes), fontsize=8, frameon=False)
    return png(figure)


def case(funds: Sequence[Mapping[str, Any]], sectors: Sequence[str]) -> bytes:
    """Figure 5: of every fund its history, the truth and the recommendations, one box each, coloured by sector.

    A recommendation that is true has a red frame, another one a dashed black one.
    """
    seen = {box["sector"] for fund in funds for key in COLUMNS.values() for box in fund[key]}
    shown = [sector for sector in sectors if sector in seen]
    color = {sector: (COLORS + MORE)[n % len(COLORS + MORE)] for n, sector in enumerate(shown)}
    most = max((min(len(fund[key]), MOST_BOXES) for fund in funds for key in COLUMNS.values()), default=1)
    figure = Figure(figsize=(5.6 * max(len(funds), 1), 1.8 + 0.4 * most), dpi=110, layout="constrained")
    axes = figure.subplots(1, max(len(funds), 1), squeeze=False)[0]
    for axis, fund in zip(axes, funds, strict=False):
        for place, (title, key) in enumerate(COLUMNS.items()):
            more = len(fund[key]) - MOST_BOXES
            head = title if more <= 0 else f"{title}, {MOST_BOXES} of {len(fund[key])}"
            axis.text(place + 0.47, 0.2, head, ha="center", va="bottom", fontsize=9, weight="bold")
            for number, box in enumerate(fund[key][:MOST_BOXES]):
                _box(axis, place, number, box, color[box["sector"]], recommended=key == "lists")
        axis.set(xlim=(-0.05, 3.0), ylim=(-most - 0.1, 1.0))
        axis.set_title(fund["user"], fontsize=10)
        axis.axis("off")
    handles = [Patch(facecolor=color[sector], alpha=0.55, label=sector) for sector in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return png(figure)


def _box(axis: Any, column: int, row: int, box: Mapping[str, Any], color: str, *, recommended: bool) -> None:
    hit = recommended and box["hit"]
    frame = "#C00000" if hit else "#222222"
    style = "--" if recommended and not hit else "-"
    axis.add_patch(Rectangle((column, -row - 0.85), 0.94, 0.75, facecolor=color, alpha=0.55, lw=0))
    edge = Rectangle(
        (column, -row - 0.85), 0.94, 0.75, fill=False, edgecolor=frame, lw=2 if hit else 0.9, linestyle=style
    )
    axis.add_patch(edge)
    title = box["title"]
    shown = title if len(title) < 22 else title[:20] + "…"
    axis.text(column + 0.47, -row - 0.48, shown, ha="center", va="center", fontsize=7)
