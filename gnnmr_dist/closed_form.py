"""Methods in closed form in the harness of all others.

A value tried is what an epoch is elsewhere: a record, a validation, a checkpoint; the best one is the model, and the
scorer is fitted again from it and the train graph whenever a run is opened. Every worker fits (a pure function of the
graph) and ranks its share of the users, so all choose by the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.ease import MEMORY_LIMIT, BaselineSkipped
from gnnmr_dist.errors import Stopped
from gnnmr_dist.evaluation import Relevant, RowResult, evaluate, relevant_items
from gnnmr_dist.fitting import Hooks, Record, Session, end_epoch, fit, judge
from gnnmr_dist.fusion import LINEAR
from gnnmr_dist.loaded import LoadedRun, Protocol, evaluated
from gnnmr_dist.models.chosen_value import ChosenValue
from gnnmr_dist.ranking import Scorer


def train_session(session: Session, hooks: Hooks) -> None:
    """Fit what the settings name: in closed form, or by the loop (:func:`~gnnmr_dist.fitting.fit`)."""
    if session.settings.model.method in CLOSED_FORM:
        _try_values(session, hooks)
    else:
        fit(session, hooks)


def _try_values(session: Session, hooks: Hooks) -> None:
    """Fit and rank with every value of the method that is left; ``finished`` is then "values"."""
    state, settings, graph = session.state, session.settings, session.dataset.graph
    method, network = CLOSED_FORM[settings.model.method], session.models[0].encoder
    assert isinstance(network, ChosenValue)
    while state.finished is None:
        started, value = time.perf_counter(), method.values[state.epoch]
        record: Record = {"kind": "epoch", "epoch": state.epoch, "tried": method.named(value), "losses": {}}
        scorer = method.fit(graph, value)
        assert not isinstance(scorer, BaselineSkipped)  # asked before (fitting.check_settings)
        network.value.fill_(value)
        state.epoch, fitted = state.epoch + 1, time.perf_counter()
        metrics = dict(evaluate(scorer, graph, session.valid, settings.evaluation.ks, session.mesh).means)
        record |= {
            "seconds": fitted - started,
            "valid": metrics,
            "valid_seconds": time.perf_counter() - fitted,
        }
        judge(session, metrics, record)
        if state.epoch == len(method.values):
            state.finished = "values"
        end_epoch(session, hooks, record, metrics)
        session.mesh.sum_step(torch.zeros(1, dtype=torch.float64, device=session.mesh.device))
        if (wish := session.mesh.notice.agreed) and state.finished is None:
            raise Stopped(f"asked to {wish.name.lower()} after value {state.epoch}")


def value_on(valid: Relevant, scorer: Scorer, graph: Graph, metric: str) -> float:
    """One metric (``Recall@20``) on validation, ranked by this process."""
    return evaluate(scorer, graph, valid, [int(metric.rpartition("@")[2])], one_process(1)).means[metric]


def choose(
    name: str,
    graph: Graph,
    valid: Relevant,
    values: Sequence[float] | None = None,
    *,
    metric: str = "Recall@20",
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[Scorer, float] | BaselineSkipped:
    """A method of ``CLOSED_FORM`` with the value that is best by ``metric`` on validation; of equals the first.

    Args:
        name: of the method.
        graph: the train graph (train items are masked).
        valid: users and items of validation.
        values: to try; None = the method's own.
        metric: name and cut-off, as in :func:`gnnmr_dist.metrics.rank_metrics`.
        memory_limit: bytes that the method's matrices may take.

    Raises:
        ValueError: there are no values, one is out of range, or no user has a validation item.
    """
    method, best = CLOSED_FORM[name], None
    if skipped := method.skipped(graph, memory_limit):
        return skipped
    for value in method.values if values is None else values:
        scorer = method.fit(graph, value)
        if isinstance(scorer, BaselineSkipped):
            return scorer
        found = value_on(valid, scorer, graph, metric)
        if best is None or found > best[0]:
            best = found, scorer, value
    if best is None:
        raise ValueError("the values to try are empty")
    return best[1], best[2]


def _valid(dataset: Dataset) -> Relevant:
    return relevant_items(dataset.interactions("valid"), dataset.num_users)


@dataclass(frozen=True)
class BaselineResult:
    """One baseline: its metrics or why it was skipped, and what was chosen on validation (empty if nothing)."""

    name: str
    result: RowResult | BaselineSkipped
    choice: str = ""


def evaluate_baselines(
    dataset: Dataset, protocol: Protocol, select_metric: str, names: Sequence[str] = tuple(CLOSED_FORM)
) -> Iterator[BaselineResult]:
    """Methods in closed form, fitted on train, their values the best on validation by ``select_metric``."""
    asked = evaluated(dataset, protocol)
    for name in names:
        found = choose(name, dataset.graph, _valid(dataset), metric=select_metric)
        if isinstance(found, BaselineSkipped):
            yield BaselineResult(name, found)
            continue
        scorer, value = found
        result = evaluate(
            scorer,
            dataset.graph,
            asked.relevant,
            protocol.ks,
            one_process(1),
            also_masked=asked.masked,
            kept=asked.kept,
        )
        yield BaselineResult(name, result, _choice(name, value, select_metric))
        del found, scorer


def choices_of(run: LoadedRun) -> dict[str, str]:
    """What validation chose beside weights (a value in closed form, the linear peer), for people; often nothing."""
    metric = run.settings.evaluation.select_metric
    if run.fusion is not None:
        return {LINEAR: f"{run.fusion.text()}, chosen on validation by {metric}"}
    if run.closed_form is None:
        return {}
    text = _choice(run.names[0], run.value, metric)
    return {run.names[0]: text} if text else {}


def _choice(name: str, value: float, metric: str) -> str:
    text = CLOSED_FORM[name].text(value)
    return f"{text}, chosen on validation by {metric}" if text else ""
