"""The loop: epochs, selection, early stopping, divergence, and going on after a cut as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_settings, planted, weights_of
from torch import Tensor

from gnnmr_dist import fitting
from gnnmr_dist.checkpoint import Checkpoint, FitState, open_checkpoint, resumed_state
from gnnmr_dist.config import Settings
from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.errors import InputError
from gnnmr_dist.fitting import (
    Record,
    Session,
    check_settings,
    fit,
    next_step,
    open_session,
    session_vectors,
    validation_metrics,
)
from gnnmr_dist.reporting import MetricsLog, read_records
from gnnmr_dist.runs import OneProcessHooks, RunDirectory
from gnnmr_dist.training import train_step


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return planted(tmp_path_factory.mktemp("data") / "planted", num_modalities=3)


def tiny(**training: Any) -> Settings:
    base = {"global_batch_size": 64, "epochs": 3, "valid_every": 1, "learning_rate": 0.01}
    return make_settings(sampling={"num_neighbors": [4, 4]}, training=base | training)


def session_of(dataset: Dataset, settings: Settings, start: Checkpoint | None = None) -> Session:
    return open_session(dataset, settings, one_process(len(dataset.modalities)), start)


class Kept:
    """Hooks that keep everything in memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.saved: list[tuple[int, int]] = []

    def record(self, record: Record) -> None:
        self.records.append(record)

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        self.saved.append((session.state.epoch, session.state.step))


class PowerCutError(Exception):
    """Stops a run at a chosen step."""


class CutOff(OneProcessHooks):
    """Hooks of a run that dies when it has recorded a certain step."""

    at = (1, 2)

    def record(self, record: Record) -> None:
        super().record(record)
        if (record["epoch"], record.get("step")) == self.at:
            self.log.flush()
            raise PowerCutError


def run(
    dataset: Dataset, folder: Path, settings: Settings, *, resume: bool = False, cut: bool = False
) -> Session:
    directory = RunDirectory(str(folder))
    start = directory.newest()[0] if resume else None
    session = session_of(dataset, settings, start)
    log = MetricsLog(directory.place("metrics.jsonl"), session.state.epoch, session.state.step)
    hooks = (CutOff if cut else OneProcessHooks)(directory, log, lambda _: None, keep=2)
    fit(session, hooks)
    log.flush()
    return session


def timeless(records: list[Record]) -> list[Record]:
    times = ("seconds", "valid_seconds", "memory", "time")
    return [{k: v for k, v in r.items() if k not in times} for r in records]


@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_run_cut_off_and_resumed_ends_as_one_never_cut(
    dataset: Dataset, tmp_path: Path, every: int
) -> None:
    settings = tiny(checkpoint_every_steps=every)
    whole = run(dataset, tmp_path / "whole", settings)
    assert whole.num_steps >= 3
    with pytest.raises(PowerCutError):
        run(dataset, tmp_path / "cut", settings, cut=True)
    kept = RunDirectory(str(tmp_path / "cut")).newest()[0].state
    assert (kept.epoch, kept.step) == {0: (1, 0), 1: (1, 2), 2: (1, 2)}[every]
    resumed = run(dataset, tmp_path / "cut", settings, resume=True)
    for ours, theirs in zip(resumed.models, whole.models, strict=True):
        for name, value in weights_of(ours).items():
            assert torch.equal(value, weights_of(theirs)[name]), name
    assert resumed.state == whole.state
    records = [read_records(tmp_path / folder / "metrics.jsonl") for folder in ("cut", "whole")]
    assert timeless(records[0]) == timeless(records[1])
    places = [(r["epoch"], r["step"]) for r in records[0] if r["kind"] == "step"]
    assert len(places) == len(set(places)) == 3 * whole.num_steps


def test_records_and_saves_of_a_run(dataset: Dataset) -> None:
    hooks, settings = Kept(), tiny(valid_every=2, checkpoint_every_steps=2)
    session = session_of(dataset, settings)
    fit(session, hooks)
    steps, epochs = (([r for r in hooks.records if r["kind"] == kind]) for kind in ("step", "epoch"))
    assert [r["epoch"] for r in epochs] == [0, 1, 2]
    assert ["valid" in r for r in epochs] == [False, True, True]  # every second, and the last
    assert len(steps) == 3 * session.num_steps
    for name in session.names:
        for kind in ("softmax", "kl"):
            mine = [r["losses"][name][kind] for r in steps if r["epoch"] == 1]
            assert epochs[1]["losses"][name][kind] == pytest.approx(sum(mine) / len(mine))
    inner = [(e, s) for e in range(3) for s in range(2, session.num_steps, 2)]
    assert sorted(hooks.saved) == sorted([*inner, (1, 0), (2, 0), (3, 0)])
    assert session.state.finished == "epochs"
    assert epochs[0]["losses"]["text"]["softmax"] > epochs[2]["losses"]["text"]["softmax"]


def test_the_best_validations_weights_are_what_remains(dataset: Dataset) -> None:
    hooks, session = Kept(), session_of(dataset, tiny(epochs=6, learning_rate=0.3, patience=6))
    fit(session, hooks)
    values = [r["valid"]["Recall@5"] for r in hooks.records if "valid" in r]
    assert session.state.best_value == max(values)
    assert session.state.best_epoch == 1 + values.index(max(values))
    assert values[-1] < max(values), "the last epoch is not the best, or this test shows nothing"
    assert validation_metrics(session, session_vectors(session))["Recall@5"] == max(values)


def test_patience_counts_validations_without_a_better_value(dataset: Dataset) -> None:
    hooks, session = Kept(), session_of(dataset, tiny(epochs=50, learning_rate=1.0, patience=2))
    fit(session, hooks)
    values = [r["valid"]["Recall@5"] for r in hooks.records if "valid" in r]
    assert session.state.finished == "patience"
    assert session.state.waited == 2
    assert len(values) < 50
    assert max(values[:-2]) >= max(values[-2:])


def test_divergence_stops_at_the_step_and_names_the_modality(dataset: Dataset) -> None:
    hooks, session = Kept(), session_of(dataset, tiny())
    before = session.num_steps
    with torch.no_grad():
        session.models[1].encoder.user_input.table.fill_(float("inf"))
    fit(session, hooks)
    assert session.state.finished == "diverged: loss of image is not finite at epoch 0, step 0"
    assert len(hooks.records) == 1 < before
    assert not hooks.saved  # a checkpoint of it would be worth nothing


@pytest.mark.parametrize("left", [1, 2])  # steps left: at the epoch's end, and at a checkpoint within it
def test_weights_that_an_update_ruined_are_never_saved(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    session, hooks = session_of(dataset, tiny(checkpoint_every_steps=1)), Kept()
    session.state.step = session.num_steps - left

    def step(*arguments: Any) -> Tensor:
        losses = train_step(*arguments)  # finite
        with torch.no_grad():
            session.models[1].encoder.user_input.table[0, 0] = torch.nan
        return losses

    monkeypatch.setattr(fitting, "train_step", step)
    fit(session, hooks)
    place = f"epoch 0, step {session.num_steps - left}"
    assert session.state.finished == f"diverged: weights of image are not finite after {place}"
    assert not hooks.saved


def test_finite_weights_whose_embeddings_are_not_are_a_divergence_too(dataset: Dataset) -> None:
    settings = tiny(epochs=1, learning_rate=1e25, global_batch_size=10_000)  # one step: its loss is finite
    session, hooks = session_of(dataset, settings), Kept()
    fit(session, hooks)
    assert session.state.finished == "diverged: embeddings of text are not finite after epoch 0"
    assert not hooks.saved


def test_fewer_epochs_than_done_end_at_the_next_epoch(dataset: Dataset) -> None:
    session = session_of(dataset, tiny(epochs=2, valid_every=100))
    session.state.epoch = 4  # a run of more epochs, cut off here and resumed with fewer
    fit(session, Kept())
    assert (session.state.finished, session.state.epoch) == ("epochs", 5)


def test_a_step_is_a_pure_function_of_its_place(dataset: Dataset) -> None:
    session = session_of(dataset, tiny())
    later = next_step(session, 2, 1)
    for place in ((0, 0), (0, 1), (2, 1)):
        again = next_step(session, *place)
    assert torch.equal(later.own_items, again.own_items)
    assert torch.equal(later.nodes.item_places, again.nodes.item_places)
    assert all(
        torch.equal(a.source, b.source) for a, b in zip(later.nodes.blocks, again.nodes.blocks, strict=True)
    )
    assert not torch.equal(later.own_items, next_step(session, 1, 1).own_items)


@pytest.mark.parametrize("supervised", ["softmax", "bpr"])
def test_items_nobody_has_are_drawn_unless_told_otherwise(dataset: Dataset, supervised: str) -> None:
    graph = dataset.graph
    cold = set(np.flatnonzero(np.diff(graph.indptr[graph.num_users :]) == 0).tolist())
    assert cold
    drawn: dict[str, set[int]] = {}
    for negatives in ("all", "trained"):
        loss = {"supervised": supervised, "negatives": negatives, "num_candidates": 40}
        session = session_of(dataset, make_settings(loss=loss, training={"global_batch_size": 64}))
        steps = [next_step(session, epoch, 0) for epoch in range(5)]
        drawn[negatives] = {
            int(i)
            for step in steps
            for part in (step.own_items, step.candidate_items)
            for i in part.flatten()
        }
    assert cold <= drawn["all"]
    assert not cold & drawn["trained"]


def test_hyper_parameters_never_see_test(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = Dataset.interactions

    def watched(self: Dataset, split: str) -> Any:
        asked.append(split)
        return original(self, split)

    monkeypatch.setattr(Dataset, "interactions", watched)
    session = session_of(dataset, tiny(epochs=1))
    check_settings(dataset, session.settings)
    fit(session, Kept())
    assert "valid" in asked
    assert "test" not in asked


@pytest.mark.parametrize(
    ("evaluation", "expected"),
    [
        (
            {"select_row": "sound"},
            "select_row: expected one of concatenation, average, aligned-average, text",
        ),
        ({"ks": [5, 65]}, "ks: expected cut-offs up to the number of items, 64, got 65"),
    ],
)
def test_settings_that_cannot_work_on_this_data(
    dataset: Dataset, evaluation: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        check_settings(dataset, make_settings(evaluation=evaluation))


def test_a_modality_may_decide_the_selection(dataset: Dataset) -> None:
    settings = make_settings(evaluation={"select_row": "image"})
    check_settings(dataset, settings)
    session = session_of(dataset, settings)
    assert 0 <= validation_metrics(session, session_vectors(session))["Recall@5"] <= 1


@pytest.mark.parametrize(
    ("finished", "changes", "expected"),
    [
        ("epochs", {"epochs": 3}, "epochs"),
        ("epochs", {"epochs": 4}, None),
        ("patience", {"epochs": 9, "patience": 2}, "patience"),
        ("patience", {"epochs": 9, "patience": 5}, None),
        ("patience", {"epochs": 3, "patience": 5}, "epochs"),
        (None, {"epochs": 9}, None),
    ],
)
def test_more_epochs_or_patience_open_a_finished_run(
    dataset: Dataset, finished: str | None, changes: dict[str, int], expected: str | None
) -> None:
    info: Any = None
    state = FitState(epoch=3, best_value=0.1, best_epoch=1, waited=2, finished=finished)
    checkpoint = Checkpoint("somewhere", info, state, {})
    assert resumed_state(checkpoint, tiny(**changes)).finished == expected


def test_a_checkpoint_of_another_shape_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, tiny(epochs=1))
    checkpoint = open_checkpoint(RunDirectory(str(tmp_path)).newest()[0].address)
    wider = make_settings(model={"embedding_dim": 16})
    with pytest.raises(InputError, match="state of text"):
        session_of(dataset, wider, checkpoint)
