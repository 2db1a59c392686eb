"""One training step, and the models it moves.

Axes: M modalities, b rows of this replica, p own columns, n users, C candidates, s seeds, d embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnmr_dist.config import Settings
from gnnmr_dist.data.steps import StepData
from gnnmr_dist.distributed.mesh import Mesh
from gnnmr_dist.members import Member
from gnnmr_dist.models.encoder import Network, score_vectors
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.models.pmgt import PMGT
from gnnmr_dist.models.scores import step_products
from gnnmr_dist.networks import build_network
from gnnmr_dist.randomness import Purpose, derive
from gnnmr_dist.row_adam import Adam
from gnnmr_dist.step_losses import Pair, add_kl_gradient, make_judges, truth_gradient


@dataclass(frozen=True)
class ModalityModel:
    """The network of one member (of GNNMR: of one modality) and its optimizer."""

    number: int
    member: Member
    encoder: Network
    optimizer: Adam

    @property
    def name(self) -> str:
        """The member's."""
        return self.member.name

    def parameters(self) -> list[nn.Parameter]:
        """Trainable tensors, in a fixed order."""
        return list(self.encoder.parameters())


def build_model(
    number: int,
    member: Member,
    shape: tuple[int, int],
    settings: Settings,
    device: torch.device,
    make: Maker = torch.zeros,
) -> ModalityModel:
    """The model of member ``number``; ``shape`` = (users, items). The same on whatever worker it is built.

    ``make`` makes the ID tables, and what the optimizer keeps of each of their rows.
    """
    key = derive(settings.training.seed, Purpose.INITIALISATION, number)
    num_layers = len(settings.sampling.num_neighbors)
    dtype = parameter_dtype(settings.training.precision)
    encoder = build_network(
        *shape, member.inputs, settings.model, num_layers, key, partial(make, dtype=dtype)
    )
    if isinstance(encoder, PMGT) and settings.pretraining.freeze_items:
        encoder.freeze()
    encoder.to(device, dtype)
    tables = encoder.id_tables()
    dense = {name: p for name, p in encoder.named_parameters() if p.requires_grad and name not in tables}
    optimizer = Adam(dense, tables, settings.training.learning_rate, settings.training.weight_decay, make)
    return ModalityModel(number, member, encoder, optimizer)


def parameter_dtype(precision: str) -> torch.dtype:
    """What parameters, scores and losses are held in: float64 if so named, else float32 (bfloat16 is autocast)."""
    return torch.float64 if precision == "float64" else torch.float32


def step_scores(model: ModalityModel, data: StepData, rows: Sequence[ItemRows], settings: Settings) -> Pair:
    """Scores over temperature of one member (Eq. 6): own items [b, p] and candidates [n, C]."""
    for name, ids in model.encoder.id_rows(data.nodes).items():
        model.optimizer.catch_up(name, ids)
    bfloat16 = settings.training.precision == "bfloat16"
    with torch.autocast(data.users.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        seeds = model.encoder(data.nodes, rows)
    h = score_vectors(seeds.to(parameter_dtype(settings.training.precision)), settings.model.score)
    return step_products(
        h, data.users, data.cells.row_user, data.own, data.candidates, settings.model.temperature
    )


def presence(present: Tensor, data: StepData) -> Pair:
    """Bool (own [M, b, p], shared [M, C]): whether the item has a row in each modality; ``present`` bool [M, I]."""
    return present[:, data.own_items], present[:, data.candidate_items]


def train_step(
    models: Sequence[ModalityModel],
    data: StepData,
    rows: Sequence[Sequence[ItemRows]],
    present: Tensor | None,
    mesh: Mesh,
    settings: Settings,
    meanwhile: Callable[[], None] = lambda: None,
) -> Tensor:
    """Move every hosted model by one step; return all modalities' mean losses, float64 [M, 2] (truth, KL).

    Every worker calls this for the same step. Losses are means over the global batch, whatever the number of replicas.

    Args:
        models: the hosted ones, in the mesh's order.
        data: this replica's part.
        rows: each model's features of ``data.nodes.items``, in every modality it reads.
        present: bool [M, I], or None when missing modalities are not to be told apart.
        mesh: where scores and gradients go.
        settings: all settings.
        meanwhile: called while the scores travel.
    """
    with threads_for(models, mesh.device) as each:
        losses = _forward_and_backward(each, models, data, rows, present, mesh, settings, meanwhile)
        if mesh.replicas > 1:
            _reduce(models, mesh)
            list(each(partial(_move, grad_clip=settings.training.grad_clip), models))
    return mesh.sum_step(losses) / data.total


Each = Callable[..., Iterable[Any]]
Truth = tuple[Tensor | float, Pair]  # a supervised loss and its gradient


@contextmanager
def threads_for(models: Sequence[ModalityModel], device: torch.device) -> Iterator[Each]:
    """A ``map`` over the hosted models: on the CPU each in a thread of its own, as far as torch's threads go.

    A step is many small operations, which several threads for each of them hardly speed up; models are independent.
    """
    threads = torch.get_num_threads()
    at_once = min(threads, len(models)) if device.type == "cpu" else 1
    if at_once <= 1:
        yield map
        return
    torch.set_num_threads(threads // at_once)
    try:
        yield _pool(at_once, threads // at_once).map
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _pool(at_once: int, threads_each: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(at_once, "model", initializer=torch.set_num_threads, initargs=(threads_each,))


def _forward_and_backward(
    each: Each,
    models: Sequence[ModalityModel],
    data: StepData,
    rows: Sequence[Sequence[ItemRows]],
    present: Tensor | None,
    mesh: Mesh,
    settings: Settings,
    meanwhile: Callable[[], None],
) -> Tensor:
    """Gradients of every hosted model; the losses of their rows, summed, float64 [M, 2].

    Where no other worker has a share in them, the gradients move their model at once: threads that meet less often
    wait less.
    """
    loss, scale, cells = settings.loss, 1 / data.total, data.cells

    def judge(pair: Pair) -> Truth:
        return truth_gradient(pair, cells, loss.supervised, scale)

    def forward(model: ModalityModel, own: Sequence[ItemRows]) -> tuple[Pair, Truth | None]:
        pair = step_scores(model, data, own, settings)
        return pair, judge(pair) if mesh.groups == 1 else None

    scores, truths = map(list, zip(*each(forward, models, rows), strict=True))
    flat = cells.flat(scores)
    gathered = mesh.start_gather(_packed(flat, settings))
    if mesh.groups > 1:  # while they travel
        truths = list(each(judge, scores))
    meanwhile()
    judges = make_judges(
        _unpacked(gathered(), flat.dtype),
        None if present is None else presence(present, data),
        cells,
        teacher=loss.teacher,
        temperature=loss.distill_temperature,
    )
    losses = torch.zeros(mesh.num_modalities, 2, dtype=torch.float64, device=mesh.device)

    def learn(model: ModalityModel, pair: Pair, truth: Truth) -> None:
        kl = add_kl_gradient(pair, judges, model.number, loss.distill_weight * scale, truth[1])
        losses[model.number, 0], losses[model.number, 1] = truth[0], kl
        model.optimizer.zero_grad()
        torch.autograd.backward(pair, truth[1])
        if mesh.replicas == 1:
            _move(model, settings.training.grad_clip)

    list(each(learn, models, scores, truths))
    return losses


def _packed(scores: Tensor, settings: Settings) -> Tensor:
    """Scores as they travel; half precision as plain bytes, which every backend takes."""
    return scores if settings.training.exchange == "float32" else scores.bfloat16().view(torch.uint8)


def _unpacked(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return scores.view(torch.bfloat16).to(dtype) if scores.dtype == torch.uint8 else scores


def _gradients(model: ModalityModel) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Of dense parameters, in order, and of ID tables by name; made where the step gave none."""
    dense, tables = [], {}
    for parameter in model.optimizer.dense_parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dense.append(parameter.grad)
    for name, table in model.optimizer.table_parameters.items():
        if table.grad is None:
            table.grad = table.new_zeros(table.shape, layout=torch.sparse_coo)
        tables[name] = table.grad
    return dense, tables


def _reduce(models: Sequence[ModalityModel], mesh: Mesh) -> None:
    """Add the gradients up over the replicas."""
    found = [_gradients(model) for model in models]
    mesh.sum_replicas([gradient for dense, _ in found for gradient in dense])
    sums = iter(mesh.sum_rows([gradient for _, tables in found for gradient in tables.values()]))
    for model, (_, tables) in zip(models, found, strict=True):
        for name in tables:
            model.optimizer.table_parameters[name].grad = next(sums)


def _move(model: ModalityModel, grad_clip: float) -> None:
    """Move a model by its gradients."""
    _gradients(model)
    if grad_clip > 0:
        _clip([p.grad for p in model.parameters() if p.grad is not None], grad_clip)
    model.optimizer.step()


def _clip(gradients: Sequence[Tensor], largest: float) -> None:
    """Scale gradients, sparse or dense, to a common norm of at most ``largest`` (as torch's clip_grad_norm_)."""
    values = [g._values() if g.is_sparse else g for g in gradients]
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in values]))
    for value in values:
        value.mul_((largest / (total + 1e-6)).clamp(max=1))


def first_not_finite(losses: Tensor, names: Sequence[str]) -> str | None:
    """The name of a modality whose loss [M, 2] is not finite, or None.

    Truth first: a peer's scores that are not finite spoil everyone's KL, but only its own truth.
    """
    for column in range(losses.shape[1]):
        bad = (~torch.isfinite(losses[:, column])).nonzero()
        if bad.numel():
            return names[int(bad[0])]
    return None


def state_tensors(model: ModalityModel) -> dict[str, dict[str, Tensor]]:
    """What must be kept to go on exactly: ``weights`` by name; ``optimizer`` as exp_avg.NAME, step.NAME..."""
    weights = {name: p.detach().cpu() for name, p in model.encoder.named_parameters()}
    return {"weights": weights, "optimizer": model.optimizer.state_tensors()}


def load_state(model: ModalityModel, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
    """Put back what :func:`state_tensors` gave.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.
    """
    load_weights(model.encoder, weights)
    model.optimizer.load_state(moments)


def load_weights(encoder: Network, weights: Mapping[str, Tensor]) -> None:
    """Copy weights in place; raises ValueError when names or shapes differ."""
    named = dict(encoder.named_parameters())
    if set(named) != set(weights):
        raise ValueError(f"expected tensors {sorted(named)}, got {sorted(weights)}")
    with torch.no_grad():
        for name, parameter in named.items():
            if weights[name].shape != parameter.shape:
                raise ValueError(
                    f"{name}: expected {tuple(parameter.shape)}, got {tuple(weights[name].shape)}"
                )
            parameter.copy_(weights[name])
