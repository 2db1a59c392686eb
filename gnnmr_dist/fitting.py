"""The loop: epochs of steps, validation, early stopping, and where to save. Knows ranks only through the mesh.

Axes: M modalities, N nodes, d embedding size.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.checkpoint import Checkpoint, FitState, resumed_state
from gnnmr_dist.config import Settings
from gnnmr_dist.data.ahead import Upcoming
from gnnmr_dist.data.batches import ItemPool, global_batch, steps_per_epoch, trained_items
from gnnmr_dist.data.dataset import Dataset, FeatureTable
from gnnmr_dist.data.steps import Sampler, StepData, gather_rows, make_sampler, step_data
from gnnmr_dist.distributed.mesh import Mesh
from gnnmr_dist.errors import InputError, Stopped, bad_input
from gnnmr_dist.evaluation import (
    ENSEMBLES,
    Relevant,
    evaluate,
    make_scorer,
    modality_vectors,
    presence_table,
    relevant_items,
)
from gnnmr_dist.mapped import check_scratch, table_maker
from gnnmr_dist.members import Member, members_of, refuse_names
from gnnmr_dist.memory import keep_freed_memory, memory_now
from gnnmr_dist.models.id_tables import Maker, keep
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.pretraining import pretrain_session
from gnnmr_dist.training import (
    ModalityModel,
    build_model,
    first_not_finite,
    load_state,
    load_weights,
    state_tensors,
    train_step,
)

Record = dict[str, Any]


class Hooks(Protocol):
    """What the loop needs from its surroundings. Every worker calls every hook at the same place."""

    def record(self, record: Record) -> None:
        """Take one JSON-able record; called by rank 0 only."""
        ...

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Keep the session's state so that training can go on from here."""
        ...


@dataclass
class Session:
    """Everything of one run on one worker."""

    dataset: Dataset
    settings: Settings
    members: tuple[Member, ...]
    mesh: Mesh
    models: list[ModalityModel]
    state: FitState
    best: dict[int, dict[str, Tensor]]
    sampler: Sampler
    pool: ItemPool | None
    tables: dict[int, list[FeatureTable]]
    valid: Relevant
    present: Tensor | None
    ensemble_present: Tensor | None
    make: Maker

    @property
    def names(self) -> list[str]:
        """All members' names, in order."""
        return [member.name for member in self.members]

    @property
    def num_steps(self) -> int:
        """Steps of one epoch."""
        return steps_per_epoch(self.dataset.graph.num_edges, self.settings.training.global_batch_size)


def check_settings(dataset: Dataset, settings: Settings) -> None:
    """Refuse settings that cannot work on this data, before any worker starts.

    Raises:
        InputError: naming the setting.
    """
    refuse_names(dataset)
    names = [member.name for member in members_of(dataset, settings.model)]
    row = settings.evaluation.select_row
    if row not in (*ENSEMBLES, *names):
        raise InputError(f"select_row: expected one of {', '.join((*ENSEMBLES, *names))}, got {row!r}")
    largest, most = max(settings.evaluation.ks), dataset.num_items
    if largest > most:
        raise InputError(f"ks: expected cut-offs up to the number of items, {most}, got {largest}")
    method = CLOSED_FORM.get(settings.model.method)
    if method is not None and (skipped := method.skipped(dataset.graph)):
        raise InputError(f"method: expected one that fits in memory, got {skipped.reason}")
    check_scratch(settings.cluster)
    make_sampler(dataset.graph, settings.sampling, settings.training.seed)


def open_session(dataset: Dataset, settings: Settings, mesh: Mesh, start: Checkpoint | None) -> Session:
    """Build the hosted models, from a checkpoint if one is given.

    Raises:
        InputError: the checkpoint does not fit the models, or there is no room for the ID tables.
    """
    keep_freed_memory()
    members = members_of(dataset, settings.model)
    models, make = [], table_maker(settings.cluster, mesh.device)
    best: dict[int, dict[str, Tensor]] = {}
    shape = (dataset.num_users, dataset.num_items)
    for number in mesh.hosted:
        model = build_model(number, members[number], shape, settings, mesh.device, make)
        if start is not None:
            try:
                load_state(
                    model, start.tensors(model.name, "weights"), start.tensors(model.name, "optimizer")
                )
            except ValueError as error:
                raise bad_input(start.address, f"state of {model.name}", str(error)) from None
            if start.has(model.name, "best"):
                keep(start.tensors(model.name, "best"), best.setdefault(number, {}), make)
        models.append(model)
    present = torch.from_numpy(presence_table(dataset, members)).to(mesh.device)
    some = not bool(present.all())
    state = FitState() if start is None else resumed_state(start, settings)
    return Session(
        dataset=dataset,
        settings=settings,
        members=members,
        mesh=mesh,
        models=models,
        state=state,
        best=best,
        sampler=make_sampler(dataset.graph, settings.sampling, settings.training.seed),
        pool=trained_items(dataset.graph) if settings.loss.negatives == "trained" else None,
        tables={m.number: [dataset.features(info.name) for info in m.member.modalities] for m in models},
        valid=relevant_items(dataset.interactions("valid"), dataset.num_users),
        present=present if some and settings.loss.mask_missing else None,
        ensemble_present=present if some and settings.evaluation.mask_missing_in_ensemble else None,
        make=make,
    )


def fit(session: Session, hooks: Hooks) -> None:
    """Train until the epochs are over, validation stops improving, or a loss is not finite.

    Ends with ``session.state.finished`` set to "epochs", "patience" or "diverged: ..."; the models then hold the
    weights of the best validation (unless diverged).

    Raises:
        Stopped: the mesh's notice asked for it; the state after that step is saved.
    """
    state, training = session.state, session.settings.training
    pretrain_session(session, hooks.record)
    while state.finished is None:
        started = time.perf_counter()
        losses = _run_epoch(session, hooks)
        if state.finished is not None or _ruined(session):
            return
        record: Record = {"kind": "epoch", "epoch": state.epoch, "seconds": time.perf_counter() - started}
        record["losses"] = _named_losses(session, losses)
        due = (state.epoch + 1) % training.valid_every == 0 or state.epoch + 1 >= training.epochs
        state.epoch, state.step, state.loss_sums = state.epoch + 1, 0, []
        metrics = _validate(session, record) if due else {}
        if state.finished is not None and state.finished.startswith("diverged"):
            return
        end_epoch(session, hooks, record, metrics)
    for model in session.models:
        load_weights(model.encoder, session.best[model.number])


def _run_epoch(session: Session, hooks: Hooks) -> Tensor:
    """The remaining steps of the current epoch; mean losses [M, 2] over the whole epoch."""
    state, training = session.state, session.settings.training
    sums = torch.tensor(state.loss_sums or [[0.0, 0.0]] * len(session.names), dtype=torch.float64)
    steps = range(state.step, session.num_steps)
    made = upcoming_steps(session, state.epoch, steps)
    for step, (data, rows) in zip(steps, made, strict=True):
        losses = train_step(
            session.models, data, rows, session.present, session.mesh, session.settings, made.meanwhile
        )
        sums += losses
        state.step, state.loss_sums = step + 1, sums.tolist()
        if session.mesh.rank == 0:
            named = _named_losses(session, losses)
            hooks.record({"kind": "step", "epoch": state.epoch, "step": step, "losses": named})
        bad = first_not_finite(losses, session.names)
        if bad is not None:
            state.finished = f"diverged: loss of {bad} is not finite at epoch {state.epoch}, step {step}"
            return sums
        every, wish = training.checkpoint_every_steps, session.mesh.notice.agreed
        due = every and state.step % every == 0 and state.step < session.num_steps
        if due or wish:
            if _ruined(session):
                return sums
            hooks.save(session, {})
        if wish:
            raise Stopped(f"asked to {wish.name.lower()} at epoch {state.epoch + 1}, step {state.step}")
    return sums / session.num_steps


def _ruined(session: Session) -> bool:
    """Whether the last update left weights that are not finite, which a loss would only show one step later.

    Asked before validating and before saving, so no checkpoint holds them; ``finished`` then names the modality.
    """
    state = session.state
    sums = torch.zeros(len(session.names), 1, dtype=torch.float64, device=session.mesh.device)
    for model in session.models:
        sums[model.number] = sum(float(p.detach().sum()) for p in model.parameters())
    session.mesh.sum_world(sums)
    bad = first_not_finite(sums.cpu(), session.names)
    if bad is not None:
        place = f"epoch {state.epoch}, step {state.step - 1}"
        state.finished = f"diverged: weights of {bad} are not finite after {place}"
    return bad is not None


def next_step(session: Session, epoch: int, step: int) -> StepData:
    """This worker's part of one step: a pure function of the settings, the data and the place in training."""
    settings, graph = session.settings, session.dataset.graph
    batch = global_batch(
        graph,
        settings.training.seed,
        epoch,
        step,
        batch_size=settings.training.global_batch_size,
        num_candidates=settings.loss.num_candidates,
        pool=session.pool,
    )
    return step_data(
        graph,
        session.sampler,
        batch,
        replica=session.mesh.replica,
        replicas=session.mesh.replicas,
        with_negatives=settings.loss.supervised == "bpr",
        exclude_supervision=settings.sampling.exclude_supervision,
    )


def upcoming_steps(
    session: Session, epoch: int, steps: Iterable[int]
) -> Upcoming[tuple[StepData, list[list[ItemRows]]]]:
    """Each step's data and every hosted model's rows of features, on the device; made ahead as the settings say."""
    how, device = session.settings.cluster.prefetch, session.mesh.device.type
    threaded = how == "thread" or (how == "auto" and (device != "cpu" or torch.get_num_threads() > 1))
    return Upcoming(lambda step: _prepared(session, epoch, step), steps, threaded=threaded)


def _prepared(session: Session, epoch: int, step: int) -> tuple[StepData, list[list[ItemRows]]]:
    data = next_step(session, epoch, step)
    items, device = data.nodes.items.numpy(), session.mesh.device
    rows = [
        [gather_rows(table, items).to(device) for table in session.tables[m.number]] for m in session.models
    ]
    return data.to(device), rows


def _validate(session: Session, record: Record) -> dict[str, float]:
    """Rank on validation, update the best weights and the patience, and decide whether to stop."""
    state, settings = session.state, session.settings
    started = time.perf_counter()
    for model in session.models:
        model.optimizer.settle()
    vectors = session_vectors(session)
    sizes = torch.linalg.vector_norm(vectors, dim=(1, 2)).unsqueeze(1).cpu()  # finite: so is every score
    bad = first_not_finite(sizes, session.names)
    if bad is not None:
        state.finished = f"diverged: embeddings of {bad} are not finite after epoch {state.epoch - 1}"
        return {}
    metrics = validation_metrics(session, vectors)
    judge(session, metrics, record)
    if state.waited >= settings.training.patience:
        state.finished = "patience"
    elif state.epoch >= settings.training.epochs:
        state.finished = "epochs"
    record["valid"], record["valid_seconds"] = metrics, time.perf_counter() - started
    return metrics


def end_epoch(session: Session, hooks: Hooks, record: Record, metrics: Mapping[str, float]) -> None:
    """Tell an epoch's record and save; ``metrics`` of validation, if there was one."""
    record["memory"] = session.mesh.gather_numbers(memory_now())
    record["received_bytes"] = dict(session.mesh.received)
    if session.mesh.rank == 0:
        hooks.record(record)
    hooks.save(session, metrics)


def judge(session: Session, metrics: Mapping[str, float], record: Record) -> None:
    """Keep the hosted models' weights as the best so far if they are, and tell the best in the epoch's record."""
    state, metric = session.state, session.settings.evaluation.select_metric
    value = metrics[metric]
    if state.best_value is None or value > state.best_value:
        state.best_value, state.best_epoch, state.waited = value, state.epoch, 0
        for m in session.models:  # over the earlier best
            keep(state_tensors(m)["weights"], session.best.setdefault(m.number, {}), session.make)
    else:
        state.waited += 1
    record["best"] = {"epoch": state.best_epoch, metric: state.best_value}


def session_vectors(session: Session) -> Tensor:
    """Score vectors of all nodes of all members [M, N, d], with the weights as they are now."""
    encoders = ((model.member, model.encoder) for model in session.models)
    return modality_vectors(encoders, session.dataset, session.settings.model, session.mesh, session.make)


def validation_metrics(session: Session, vectors: Tensor) -> dict[str, float]:
    """Metrics of the selecting row on validation; ``vectors`` [M, N, d]."""
    graph, evaluation = session.dataset.graph, session.settings.evaluation
    scorer = make_scorer(evaluation.select_row, session.names, vectors, graph, session.ensemble_present)
    return dict(evaluate(scorer, graph, session.valid, evaluation.ks, session.mesh).means)


def _named_losses(session: Session, losses: Tensor) -> Mapping[str, Mapping[str, float]]:
    kind = session.settings.loss.supervised
    return {
        name: {kind: float(a), "kl": float(b)} for name, (a, b) in zip(session.names, losses, strict=True)
    }
