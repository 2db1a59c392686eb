"""Which trial comes next: points from a list or from Optuna, each with all its seeds; knows the record, not Ray."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from gnnmr_dist.config import Settings
from gnnmr_dist.errors import InputError
from gnnmr_dist.randomness import Purpose, derive
from tune.record import Ended, Record, Trial
from tune.space import Choice, Point, Space, settings_of

POPULATION = 10


class Source(Protocol):
    """Where points come from."""

    def ask(self) -> Point | None:
        """The next point, or None when there are no more."""
        ...

    def recall(self, values: Point) -> None:
        """Take a point of an earlier session as the next one asked for."""
        ...

    def tell(self, point: int, result: float | None) -> None:
        """Hear the mean result of the ``point``-th point asked for (None: it failed), in any order."""
        ...


class Listed:
    """Points known beforehand: a grid, or random draws."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._rest = iter(points)

    def ask(self) -> Point | None:
        """See :class:`Source`."""
        return next(self._rest, None)

    def recall(self, values: Point) -> None:
        """Pass over it: the points are the same in every session."""
        next(self._rest, None)

    def tell(self, point: int, result: float | None) -> None:
        """Nothing to learn."""


class Suggested:
    """Points that Optuna suggests from the results so far: its TPE sampler, or its genetic algorithm ("population").

    Lists are categories, whatever their values are; ranges are numbers. ``asked``: how many
    points earlier sessions had asked for; each session draws from a stream of randomness of its own.
    """

    def __init__(self, space: Space, search: str, seed: int, asked: int) -> None:
        import optuna  # an optional dependency

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._space = space
        self._asked: list[Any] = []
        stream = derive(seed, Purpose.SWEEP, asked) % 2**32
        if search == "population":
            sampler: Any = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=stream)
        else:
            sampler = optuna.samplers.TPESampler(seed=stream)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {name: self._distribution(domain) for name, domain in space.domains.items()}

    def _distribution(self, domain: Any) -> Any:
        kinds = self._optuna.distributions
        if isinstance(domain, Choice):
            return kinds.CategoricalDistribution(tuple(range(len(domain.values))))
        if domain.whole:
            return kinds.IntDistribution(
                int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1)
            )
        return kinds.FloatDistribution(domain.low, domain.high, log=domain.log, step=domain.step)

    def ask(self) -> Point | None:
        """See :class:`Source`; never None."""
        trial = self._study.ask(self._distributions)
        self._asked.append(trial)
        domains = self._space.domains
        return {
            name: domain.values[trial.params[name]] if isinstance(domain, Choice) else trial.params[name]
            for name, domain in domains.items()
        }

    def recall(self, values: Point) -> None:
        """See :class:`Source`; asked for anew, so that the sampler's own bookkeeping (generations) is as it was."""
        params = {
            name: domain.values.index(values[name]) if isinstance(domain, Choice) else values[name]
            for name, domain in self._space.domains.items()
        }
        self._study.enqueue_trial(params)
        self.ask()

    def tell(self, point: int, result: float | None) -> None:
        """See :class:`Source`."""
        states = self._optuna.trial.TrialState
        state = states.FAIL if result is None else states.COMPLETE
        self._study.tell(self._asked[point], result, state=state)


def seed_of(base: int, repeat: int) -> int:
    """The seed of a point's repeat, the same for all points: the first has the base settings' own."""
    return base if repeat == 0 else derive(base, Purpose.SWEEP, 2**32, repeat) >> 1


class Plan:
    """The trials still to run: those that an earlier session left unfinished, then those of new points."""

    def __init__(self, record: Record, source: Source, base: Settings, points: int) -> None:
        self.record, self.source, self.base, self.points = record, source, base, points
        self._waiting = [trial for trial in record.trials if trial.ended is None]
        for point, values in {trial.point: trial.values for trial in record.trials}.items():
            source.recall(values)
            self._tell_if_complete(point)
        self._new = self._new_trials()

    @property
    def total(self) -> int:
        """How many trials there are in all, run or not."""
        return max(len(self.record.trials), self.points * self.record.sweep.seeds)

    @property
    def left(self) -> int:
        """How many are still to run."""
        return len(self._waiting) + self.total - len(self.record.trials)

    def next(self) -> Trial | None:
        """The next trial to run, already in the record; None when there are no more."""
        if self._waiting:
            return self._waiting.pop(0)
        return next(self._new, None)

    def _new_trials(self) -> Iterator[Trial]:
        asked = 1 + max((trial.point for trial in self.record.trials), default=-1)
        seeds = self.record.sweep.seeds
        if self.record.trials and len(self.record.trials) % seeds:  # cut off between a point's repeats
            last = self.record.trials[-1]
            yield from self._repeats(asked - 1, last.values, range(last.repeat + 1, seeds))
        for point in range(asked, self.points):
            values = self.source.ask()
            if values is None:
                return
            yield from self._repeats(point, values, range(seeds))

    def _repeats(self, point: int, values: Point, repeats: range) -> Iterator[Trial]:
        for repeat in repeats:
            seed = seed_of(self.base.training.seed, repeat)
            trial = Trial(len(self.record.trials), point, repeat, seed, values)
            self.record.add(trial)
            problem = self.problem(trial)
            if problem is None:
                yield trial
            else:
                self.end(trial, Ended("failed", reason=problem))

    def problem(self, trial: Trial) -> str | None:
        """Why the values of a suggested point do not go together; None when they do."""
        try:
            settings_of(self.base, trial.values, trial.seed)
        except InputError as error:
            return str(error)
        return None

    def end(self, trial: Trial, ended: Ended) -> None:
        """Record how a trial ended; once all of its point's repeats have, the search is told their mean."""
        self.record.end(trial.number, ended)
        self._tell_if_complete(trial.point)

    def _tell_if_complete(self, point: int) -> None:
        group = [trial for trial in self.record.trials if trial.point == point]
        ends = [trial.ended for trial in group]
        if len(group) < self.record.sweep.seeds or any(ended is None for ended in ends):
            return
        values = [None if ended is None else ended.value for ended in ends]
        known = [value for value in values if value is not None]
        failed = any(ended is not None and ended.status == "failed" for ended in ends)
        mean = None if failed or not known else statistics.fmean(known)
        self.source.tell(point, mean)
