"""What a trial's run directory tells: its validations, its best, whether it is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import FitState
from gnnmr_dist.errors import InputError
from gnnmr_dist.reporting import read_records
from gnnmr_dist.runs import METRICS, RunDirectory


@dataclass(frozen=True)
class Validation:
    """One validation of a run: epochs done, metrics, and the seconds of training and ranking until then."""

    epoch: int
    metrics: Mapping[str, float]
    seconds: float


def validations(address: str) -> list[Validation]:
    """The validations in a run directory's metrics.jsonl, in order; none where there is no such file."""
    place = storage.join(address, METRICS)
    found, seconds = [], 0.0
    for record in read_records(place) if storage.exists(place) else []:
        if record["kind"] == "epoch":
            seconds += record["seconds"] + record.get("valid_seconds", 0.0)
            if "valid" in record:
                found.append(Validation(record["epoch"] + 1, record["valid"], seconds))
    return found


def best_of(history: Sequence[Validation], metric: str) -> Validation | None:
    """The first validation of the largest value, as training itself chooses; None without any."""
    return max(history, key=lambda v: v.metrics[metric], default=None)


def newest_state(address: str) -> FitState | None:
    """The place in training of a run's newest complete checkpoint; None when it has none."""
    try:
        return RunDirectory(address).newest()[0].state
    except InputError:
        return None


def publish(address: str) -> bool:
    """Give a run that was stopped its model, the best weights so far, if it has none; whether it has one now."""
    run = RunDirectory(address)
    try:
        run.model()
    except InputError:
        if newest_state(address) is None:
            return False
        run.publish_model(run.newest()[0])
    return True
