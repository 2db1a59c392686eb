"""The Ray Tune side of a sweep: a thin adapter between Tune's controller and the plan, which knows nothing of Ray."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from gnnmr_dist import storage
from gnnmr_dist.config import Settings
from gnnmr_dist.connection import connected
from gnnmr_dist.errors import RunError
from tune.concurrency import DRIVER_CPUS, require_room, trial_resources
from tune.history import newest_state, validations
from tune.plan import Plan
from tune.record import Ended, Record, Trial
from tune.space import settings_of
from tune.trial import BEST, EPOCH, run_trial

Show = Callable[[Trial, Mapping[str, Any] | None, Ended | None], None]
"""Called with a trial and either its newest report or how it ended."""


def run_sweep(plan: Plan, show: Show, concurrency: int | None, begin: Callable[[int], None]) -> list[str]:
    """Run the plan's trials on the cluster; returns a line for each trial whose process was lost (they can be resumed).

    Args:
        plan: what is still to run.
        show: told of every validation and every end, in this process.
        concurrency: trials at once; None = as many as always fit.
        begin: called with how many trials run at once, once that is sure; nothing is written before.

    Raises:
        InputError: no trial can ever be placed, or not as many as asked for.
        RunError: a trial found its data set or output unusable: no other trial could do better.
    """
    cluster = plan.base.cluster
    with connected(cluster, DRIVER_CPUS if cluster.num_workers else 0):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        at_once = require_room(nodes, cluster, concurrency, max(plan.left, 1))
        begin(at_once)
        if plan.left == 0:
            return []
        home = plan.record.place("ray")
        asking = _Asking(plan, show, at_once)
        try:
            _tuner(asking, home, trial_resources(nodes, cluster)).fit()
        finally:
            storage.remove_tree(home)
    if asking.ruined is not None:
        raise RunError(f"{asking.ruined}; --resume goes on once that is mended")
    return asking.lost


def _tuner(asking: _Asking, home: str, resources: Mapping[str, float]) -> Any:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = (
        "1"  # Ctrl-C ends the sweep at once; our record is complete anyway
    )
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # metrics.jsonl has it all
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its boxes come even with verbose=0
    cluster = asking.plan.base.cluster
    return ray.tune.Tuner(
        ray.tune.with_resources(run_trial, {key.lower(): amount for key, amount in resources.items()}),
        tune_config=ray.tune.TuneConfig(
            search_alg=asking,
            scheduler=_scheduler(asking.plan.record, asking.plan.base),
            num_samples=asking.plan.left,
            trial_name_creator=_trial_id,
            trial_dirname_creator=_trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=f"sweep-{uuid.uuid4().hex[:12]}",
            storage_path=home,
            stop=_Ruined(asking),
            failure_config=ray.tune.FailureConfig(max_failures=cluster.max_failures),
            verbose=0,
        ),
    )


def _scheduler(record: Record, base: Settings) -> Any:
    """Ray's scheduler, told through its own interface what ended trials had reported in earlier sessions."""
    sweep = record.sweep
    if sweep.stopper == "none":
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr=EPOCH,
        metric=BEST,
        mode="max",
        max_t=base.training.epochs,
        grace_period=sweep.grace,
        reduction_factor=sweep.reduction,
        stop_last_trials=False,
    )
    metric = base.evaluation.select_metric
    for trial in record.trials:
        if trial.ended is None:
            continue
        known, best = SimpleNamespace(trial_id=f"earlier-{trial.number}"), -1.0
        scheduler.on_trial_add(None, known)
        for validation in validations(record.run(trial)):
            best = max(best, validation.metrics[metric])
            scheduler.on_trial_result(None, known, {EPOCH: validation.epoch, BEST: best})
    return scheduler


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


class _Asking(Searcher):  # type: ignore[misc]
    """Tune's search algorithm: asks the plan for trials and tells it how they ended."""

    def __init__(self, plan: Plan, show: Show, at_once: int) -> None:
        super().__init__(metric=BEST, mode="max")
        self.plan, self.show, self.at_once = plan, show, at_once
        self.running: dict[str, Trial] = {}
        self.told: set[tuple[str, int]] = set()
        self.lost: list[str] = []
        self.ruined: str | None = None

    def suggest(self, trial_id: str) -> Any:
        """The settings of the next trial; None = later, since all places are taken."""
        if self.ruined is not None:
            return Searcher.FINISHED
        if len(self.running) >= self.at_once:
            return None
        trial = self.plan.next()
        if trial is None:
            return Searcher.FINISHED
        self.running[trial_id] = trial
        record = self.plan.record
        settings = settings_of(self.plan.base, trial.values, trial.seed)
        return {
            "dataset": record.sweep.dataset,
            "output": record.run(trial),
            "settings": settings.model_dump(mode="json"),
            "command": record.sweep.command,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Show a validation."""
        told = (trial_id, int(result.get(EPOCH, 0)))
        if trial_id in self.running and told[1] and told not in self.told:  # the last report comes twice
            self.told.add(told)
            self.show(self.running[trial_id], result, None)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Keep how a trial ended, unless the whole sweep is over before its time."""
        trial = self.running.pop(trial_id, None)
        if trial is None or self.ruined is not None:
            return
        result = result or {}
        if error:
            self.lost.append(f"{trial.name}: its process was lost")
        elif result.get("bad_input"):
            self.ruined = f"{trial.name}: {result['failed']}"
        else:
            ended = self._ended(trial, result)
            self.plan.end(trial, ended)
            self.show(trial, None, ended)

    def _ended(self, trial: Trial, result: Mapping[str, Any]) -> Ended:
        """What the run directory says; the last report alone does not tell finished from stopped."""
        if "failed" in result:
            return Ended("failed", reason=result["failed"])
        state = newest_state(self.plan.record.run(trial))
        if state is None:
            return Ended("failed", reason="it left no checkpoint")
        status = "stopped" if state.finished is None else "finished"
        return Ended(status, state.best_value, state.best_epoch, state.epoch)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own record is what a resumed one goes by."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see :meth:`save`."""

    def __reduce__(self) -> Any:
        return (
            Searcher,
            (BEST, "max"),
        )  # Tune pickles its parts for a restore of its own, which is never used

    def __deepcopy__(self, memo: Any) -> _Asking:
        return self


class _Ruined(ray.tune.Stopper):  # type: ignore[misc]
    """Ends the whole experiment once a trial has told that no other could do better."""

    def __init__(self, asking: _Asking) -> None:
        self.asking = asking

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to end everything."""
        return self.asking.ruined is not None

    def __deepcopy__(self, memo: Any) -> _Ruined:
        return self
