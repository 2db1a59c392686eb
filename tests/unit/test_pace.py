"""The pace of training: hand-computed means, and what does not count as time of steps."""

from __future__ import annotations

from typing import Any

import pytest

from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def step(number: int, loss: float, epoch: int = 0) -> dict[str, Any]:
    return {"kind": "step", "epoch": epoch, "step": number, "losses": {"text": {"bpr": loss, "kl": loss / 2}}}


def made(every: int) -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(one_process(1), num_steps=5, batch_size=10, num_edges=43, every=every, clock=clock), clock


def test_means_over_windows_that_end_with_the_epoch() -> None:
    pace, clock = made(every=3)
    told = []
    for number in range(5):
        clock.now += 2.0
        pace.mesh.waited["scores"] += 0.5
        pace.mesh.waited["other"] += 9.0
        told.append(pace.take(step(number, float(number))))
    assert [record is None for record in told] == [True, True, False, True, False]
    first, last = told[2], told[4]
    assert first == {
        "kind": "steps",
        "epoch": 0,
        "step": 2,
        "steps": 3,
        "losses": {"text": {"bpr": 1.0, "kl": 0.5}},
        "samples_per_second": 5.0,
        "seconds": 6.0,
        "exchange_seconds": 1.5,
    }
    assert last is not None
    assert (last["steps"], last["losses"]["text"]["bpr"]) == (2, 3.5)
    assert last["samples_per_second"] == pytest.approx((10 + 3) / 4, abs=0.06)  # the last step is of 3 edges
    assert pace.totals.samples == 43


def test_validation_and_saving_are_no_steps() -> None:
    pace, clock = made(every=2)
    clock.now += 1.0
    pace.take(step(0, 1.0))
    clock.now += 50.0
    pace.mesh.waited["scores"] += 50.0
    pace.saved()
    assert pace.saved_at == clock.now
    clock.now += 1.0
    record = pace.take(step(1, 1.0))
    assert record is not None
    assert (record["seconds"], record["exchange_seconds"]) == (2.0, 0.0)
    clock.now += 70.0
    assert pace.take({"kind": "epoch", "epoch": 0}) is None
    clock.now += 1.0
    pace.take(step(0, 1.0, epoch=1))
    assert pace.totals.seconds == 3.0
