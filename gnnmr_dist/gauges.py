"""Prometheus gauges of a run, through Ray's own metrics: every node offers those of its workers to a scrape.

A thread of every worker looks at the run every other second, so steps pay nothing, and ages grow while nothing else
happens. Ray puts ``ray_`` before every name. Without ray[default] on the node they go nowhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ray.util.metrics import Gauge

from gnnmr_dist.fitting import Session
from gnnmr_dist.pace import Pace

SECONDS = 2.0
"""Between two looks; Ray itself passes values on every ten seconds."""

PER_RUN = {
    "epoch": "epochs done",
    "step": "steps done of the epoch",
    "samples_per_second": "train interactions per second of steps, over all workers",
    "checkpoint_age_seconds": "seconds since the newest checkpoint, or since the workers began",
}
PER_MODALITY = {
    "supervised_loss": "of the newest step, by modality",
    "distillation_loss": "of the newest step, by modality",
}
PER_WORKER = {
    "exchange_seconds": "seconds a step was held up by the exchange",
    "step_age_seconds": "seconds since this worker's newest step (validation and saving count)",
}
Set = Callable[[str, float, dict[str, str]], None]


@contextmanager
def gauges(session: Session, pace: Pace, output: str) -> Iterator[None]:
    """While open, this worker's gauges follow ``session``, under the name of the run directory ``output``."""
    run, ended = output.rstrip("/").rsplit("/", 1)[-1], threading.Event()
    look = Look(session, pace, run, _setter(), time.perf_counter)

    def follow() -> None:
        while True:
            with suppress(Exception):  # a gauge less is no reason to lose a run
                look()
            if ended.wait(SECONDS):
                return

    thread = threading.Thread(target=follow, name="gauges", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=SECONDS)
        with suppress(Exception):
            look()  # what a run ended with


def _setter() -> Set:
    made: dict[str, Any] = {}
    for table, tags in ((PER_RUN, ()), (PER_MODALITY, ("modality",)), (PER_WORKER, ("rank",))):
        for name, text in table.items():
            made[name] = Gauge(f"gnnmr_{name}", description=text, tag_keys=("run", *tags))
    return lambda name, value, tags: made[name].set(value, tags)


class Look:
    """One look at a worker's run after the other; those of rank 0 also tell what is the same for all workers."""

    def __init__(
        self, session: Session, pace: Pace, run: str, set_gauge: Set, clock: Callable[[], float]
    ) -> None:
        self._session, self._pace, self._run, self._set, self._clock = session, pace, run, set_gauge, clock
        self._began = self._stepped = clock()
        self._steps, self._waited, self._totals = self._place(), session.mesh.exchange_seconds(), pace.totals

    def __call__(self) -> None:
        """Set this worker's gauges to what is true now."""
        self._of_worker({"run": self._run, "rank": str(self._session.mesh.rank)})
        if self._session.mesh.rank == 0:
            self._of_run({"run": self._run})

    def _place(self) -> int:
        return self._session.state.epoch * self._session.num_steps + self._session.state.step

    def _of_worker(self, tags: dict[str, str]) -> None:
        place, waited, now = self._place(), self._session.mesh.exchange_seconds(), self._clock()
        if place > self._steps:
            self._set("exchange_seconds", (waited - self._waited) / (place - self._steps), tags)
            self._waited, self._stepped = waited, now
        self._steps = place
        self._set("step_age_seconds", now - self._stepped, tags)

    def _of_run(self, tags: dict[str, str]) -> None:
        state, pace, totals = self._session.state, self._pace, self._pace.totals
        self._set("epoch", state.epoch, tags)
        self._set("step", state.step, tags)
        done, self._totals = totals.since(self._totals), totals
        if done.seconds > 0:
            self._set("samples_per_second", done.samples / done.seconds, tags)
        saved = self._began if pace.saved_at is None else pace.saved_at
        self._set("checkpoint_age_seconds", self._clock() - saved, tags)
        for name, losses in ({} if pace.newest is None else pace.newest["losses"]).items():
            supervised, distillation = losses.values()
            self._set("supervised_loss", supervised, tags | {"modality": name})
            self._set("distillation_loss", distillation, tags | {"modality": name})
