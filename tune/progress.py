"""Live progress of a sweep: one plain line per validation and per ended trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console

from gnnmr_dist.config import Settings
from tune.choice import best
from tune.plan import Plan
from tune.record import Ended, Trial
from tune.space import described


class SweepProgress:
    """Prints what the driver is told."""

    def __init__(self, plan: Plan, base: Settings, stream: TextIO | None = None) -> None:
        self.plan, self.base = plan, base
        self.console = Console(file=stream or sys.stdout, highlight=False, markup=False, soft_wrap=True)
        self._started = time.monotonic()

    def show(self, trial: Trial, result: Mapping[str, Any] | None, ended: Ended | None) -> None:
        """A trial's newest report, or how it ended."""
        metric, point = self.base.evaluation.select_metric, described(trial.values)
        if result is not None:
            done = f"epoch {result['epoch']:>3}/{self.base.training.epochs}"
            self._print(
                f"{trial.name}  {done}  valid {metric} {result['value']:.4f} (best {result['best']:.4f})  {point}"
            )
        if ended is not None:
            self._print(f"{trial.name}  {outcome(ended)}  {point}  |  {self.summary()}")

    def summary(self) -> str:
        """How many trials ended, and the best so far."""
        trials = self.plan.record.trials
        ended = sum(trial.ended is not None for trial in trials)
        leader = best(trials, self.plan.record.sweep.seeds)
        ahead = "none finished" if leader is None else f"best {leader.mean:.4f} by {leader.trials[0].name}"
        return f"{ended} of {self.plan.total} ended, {ahead}, {time.monotonic() - self._started:.0f} s"

    def _print(self, line: str) -> None:
        self.console.print(line)


def outcome(ended: Ended) -> str:
    """How a trial ended, in words."""
    if ended.status == "failed":
        return f"failed: {ended.reason}"
    value = "no validation" if ended.value is None else f"{ended.value:.4f} (epoch {ended.best_epoch})"
    return f"{ended.status} after {ended.epochs} epochs, best {value}"
