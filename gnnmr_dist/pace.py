"""How fast training goes: seconds of steps and of their exchange, and means over some steps at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gnnmr_dist.distributed.mesh import Mesh
from gnnmr_dist.fitting import Session

Record = Mapping[str, Any]


@dataclass
class Totals:
    """Sums over steps: how many, their samples (train interactions), seconds, and seconds held up by the exchange."""

    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    exchange: float = 0.0

    def since(self, earlier: Totals) -> Totals:
        """What came on top of ``earlier``."""
        return Totals(
            self.steps - earlier.steps,
            self.samples - earlier.samples,
            self.seconds - earlier.seconds,
            self.exchange - earlier.exchange,
        )


@dataclass
class Pace:
    """The pace of one worker; validation and saving do not count as time of steps.

    ``totals``, ``newest`` (the newest step's record) and ``saved_at`` may be read by other threads.
    """

    mesh: Mesh
    num_steps: int
    batch_size: int
    num_edges: int
    every: int
    clock: Callable[[], float] = time.perf_counter
    totals: Totals = field(default_factory=Totals)
    newest: Record | None = None
    saved_at: float | None = None

    def __post_init__(self) -> None:
        self._began = self.totals
        self._sums: dict[str, dict[str, float]] = {}
        self.skip()

    @classmethod
    def of(cls, session: Session) -> Pace:
        """The pace of a session whose steps begin now."""
        settings, edges = session.settings, session.dataset.graph.num_edges
        every = settings.reporting.report_every_steps
        return cls(session.mesh, session.num_steps, settings.training.global_batch_size, edges, every)

    def skip(self) -> None:
        """What happened since the newest step was no step."""
        self._time, self._waited = self.clock(), self.mesh.exchange_seconds()

    def saved(self) -> None:
        """A checkpoint is complete."""
        self.saved_at = self.clock()
        self.skip()

    def take(self, record: Record) -> Record | None:
        """Take a record of training; every ``every`` steps, and at an epoch's end, the means since the last ones.

        Those are a record of kind "steps": ``epoch``, ``step`` (the last one), ``steps`` (how many), ``losses``,
        ``samples_per_second``, ``seconds`` and ``exchange_seconds`` (of all of them).
        """
        if record["kind"] != "step":
            self.skip()
            return None
        now, waited, step = self.clock(), self.mesh.exchange_seconds(), record["step"]
        self.totals = Totals(
            self.totals.steps + 1,
            self.totals.samples + min(self.batch_size, self.num_edges - step * self.batch_size),
            self.totals.seconds + now - self._time,
            self.totals.exchange + waited - self._waited,
        )
        self._time, self._waited, self.newest = now, waited, record
        for name, losses in record["losses"].items():
            sums = self._sums.setdefault(name, dict.fromkeys(losses, 0.0))
            for kind, value in losses.items():
                sums[kind] += value
        return self._means(record) if (step + 1) % self.every == 0 or step + 1 == self.num_steps else None

    def _means(self, record: Record) -> Record:
        done = self.totals.since(self._began)
        means = {
            name: {kind: value / done.steps for kind, value in sums.items()}
            for name, sums in self._sums.items()
        }
        self._began, self._sums = self.totals, {}
        return {
            "kind": "steps",
            "epoch": record["epoch"],
            "step": record["step"],
            "steps": done.steps,
            "losses": means,
            "samples_per_second": round(done.samples / max(done.seconds, 1e-9), 1),
            "seconds": round(done.seconds, 6),
            "exchange_seconds": round(done.exchange, 6),
        }
