"""Which settings are best, by validation: one rule for the report, the settings file and the search."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tune.record import Trial
from tune.space import Point


@dataclass(frozen=True)
class Standing:
    """A point and its trials so far. ``mean`` and ``deviation`` (of the sample) are over trials that have a value."""

    point: int
    values: Point
    trials: tuple[Trial, ...]

    @property
    def known(self) -> list[float]:
        """Best validation values of its trials that have one."""
        ended = [trial.ended for trial in self.trials]
        return [each.value for each in ended if each is not None and each.value is not None]

    @property
    def mean(self) -> float | None:
        """Mean of :attr:`known`."""
        return statistics.fmean(self.known) if self.known else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of :attr:`known`, from two on."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None

    def all_are(self, status: str) -> bool:
        """Whether every trial ended so."""
        return all(trial.ended is not None and trial.ended.status == status for trial in self.trials)


def standings(trials: Sequence[Trial], seeds: int) -> list[Standing]:
    """Points in the order asked, each with its trials."""
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.point, []).append(trial)
    return [Standing(point, group[0].values, tuple(group[:seeds])) for point, group in found.items()]


def best(trials: Sequence[Trial], seeds: int) -> Standing | None:
    """The point of the largest mean among those whose trials all finished; the earlier one of equals.

    A stopped trial's value is that of a shorter training, so stopped points are taken only where no point finished;
    points with a failed or unfinished trial never are. None: there is no such point.
    """
    complete = [s for s in standings(trials, seeds) if len(s.known) == seeds]
    finished = [s for s in complete if s.all_are("finished")]
    stopped = [
        s for s in complete if not any(t.ended is None or t.ended.status == "failed" for t in s.trials)
    ]
    return max(finished or stopped, key=lambda s: s.mean or 0.0, default=None)
