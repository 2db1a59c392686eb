"""One trial: the trainer's own path, in a process of Ray Tune, into a run directory of its own.

A trial that starts again, after the loss of its process or of the whole sweep, goes on from its newest checkpoint;
first it tells Tune again what it had told before, since a new scheduler knows nothing of it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import ray.tune
import torch

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import Checkpoint
from gnnmr_dist.config import Settings
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.errors import InputError, RunError
from gnnmr_dist.fitting import Record
from gnnmr_dist.runs import RunDirectory
from gnnmr_dist.train import train
from tune.history import validations

EPOCH, BEST, VALUE = "epoch", "best", "value"
"""What a trial reports: epochs done, its best validation value so far (what trials are compared by), and this one."""


def run_trial(config: Mapping[str, Any]) -> dict[str, Any]:
    """Train as ``config`` says (``dataset``, ``output``, ``settings``, ``command``); returns the last report.

    What a user or a run got wrong is returned as ``failed`` (``bad_input``: whether no other trial could do better),
    so that Ray neither tries it again nor wraps it; a lost process is Ray's to try again.
    """
    settings = Settings.model_validate(config["settings"])
    sys.argv = list(config["command"])  # what run.json keeps as the run's command
    if settings.cluster.num_workers == 0:
        torch.set_num_threads(max(1, int(settings.cluster.cpus_per_worker)))
    telling = _Telling(settings.evaluation.select_metric)
    try:
        _train(config["dataset"], config["output"], settings, telling)
    except InputError as error:
        return telling.last | {"failed": str(error), "bad_input": True}
    except RunError as error:
        return telling.last | {"failed": str(error), "bad_input": False}
    except OSError:
        if (gone := _refusal(config["dataset"])) is None:
            raise
        return telling.last | {"failed": gone, "bad_input": True}
    return telling.last


def _refusal(dataset: str) -> str | None:
    """Why the data set cannot be opened (it may have disappeared in the middle of a trial); None where it can."""
    try:
        open_dataset(dataset, verify="structure")
    except InputError as error:
        return str(error)
    return None


def _train(address: str, output: str, settings: Settings, telling: _Telling) -> None:
    dataset = open_dataset(address, verify="structure")
    start = _start(output)
    if start is not None:
        for validation in validations(output):
            if validation.epoch <= start.state.epoch:
                telling.tell(validation.epoch, validation.metrics)
    train(dataset, output, settings, start, telling.watch)


def _start(output: str) -> Checkpoint | None:
    """The checkpoint to go on from; where there is none, what a cut-off start left behind is removed."""
    run = RunDirectory(output)
    try:
        return run.newest()[0]
    except InputError:
        storage.remove_tree(output)
        return None


class _Telling:
    """Reports of one trial to Ray Tune."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.last: dict[str, Any] = {EPOCH: 0, BEST: -1.0, VALUE: -1.0}  # below every metric

    def watch(self, record: Record) -> None:
        """Report a validation once its checkpoint is complete, so that stopping right then loses nothing."""
        if record["kind"] == "saved":
            self.tell(record["epoch"], record["valid"])

    def tell(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Report one validation; Tune may end this process here."""
        value = metrics[self.metric]
        self.last = {EPOCH: epoch, BEST: max(value, self.last[BEST]), VALUE: value}
        ray.tune.report(dict(self.last))
