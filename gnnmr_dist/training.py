"""One training step, and the models it moves.

Axes: M modalities, b rows of this replica, S columns of scores, s seeds, d embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gnnmr_dist.config import ModelSettings, Settings
from gnnmr_dist.data.steps import StepData
from gnnmr_dist.distributed.mesh import Mesh
from gnnmr_dist.losses import add_kl_gradient, make_peers, truth_gradient
from gnnmr_dist.models.encoder import Encoder, make_layer, score_vectors
from gnnmr_dist.models.inputs import ItemRows, Kind
from gnnmr_dist.models.scores import row_scores
from gnnmr_dist.randomness import Purpose, derive


@dataclass(frozen=True)
class ModalityModel:
    """The network of one modality and its optimizer."""

    number: int
    name: str
    encoder: Encoder
    optimizer: torch.optim.Adam

    def parameters(self) -> list[nn.Parameter]:
        """Trainable tensors, in a fixed order."""
        return list(self.encoder.parameters())


def build_encoder(
    num_users: int, num_items: int, kind: Kind, size: int, settings: ModelSettings, num_layers: int, key: int
) -> Encoder:
    """A freshly initialised encoder; its parameters are a function of ``key`` alone (the global RNG is left alone)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key % 2**63)
        layers = [
            make_layer(
                settings.encoder,
                settings.embedding_dim,
                heads=settings.heads,
                self_loops=settings.self_loops,
                negative_slope=settings.negative_slope,
                degree_scaling=settings.degree_scaling,
                identity=settings.identity_init,
            )
            for _ in range(num_layers)
        ]
        return Encoder(
            num_users,
            num_items,
            kind,
            size,
            layers,
            embedding_dim=settings.embedding_dim,
            combination=settings.layer_combination,
            activation=settings.activation,
            item_id=settings.item_id,
        )


def build_model(
    number: int,
    name: str,
    kind: Kind,
    size: int,
    shape: tuple[int, int],
    settings: Settings,
    device: torch.device,
) -> ModalityModel:
    """The model of modality ``number``; ``shape`` = (users, items). The same on whatever worker it is built."""
    key = derive(settings.training.seed, Purpose.INITIALISATION, number)
    num_layers = len(settings.sampling.num_neighbors)
    encoder = build_encoder(*shape, kind, size, settings.model, num_layers, key)
    encoder.to(device, parameter_dtype(settings.training.precision))
    training = settings.training
    optimizer = torch.optim.Adam(
        encoder.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    return ModalityModel(number, name, encoder, optimizer)


def parameter_dtype(precision: str) -> torch.dtype:
    """What parameters, scores and losses are held in: float64 if so named, else float32 (bfloat16 is autocast)."""
    return torch.float64 if precision == "float64" else torch.float32


def step_scores(model: ModalityModel, data: StepData, rows: ItemRows, settings: Settings) -> Tensor:
    """Scores over temperature [b, S] of one modality: positive[, negative], then the shared candidates (Eq. 6)."""
    bfloat16 = settings.training.precision == "bfloat16"
    with torch.autocast(data.users.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        seeds = model.encoder(data.nodes, rows)
    h = score_vectors(seeds.to(parameter_dtype(settings.training.precision)), settings.model.score)
    own = [data.positives] if data.negatives is None else [data.positives, data.negatives]
    return row_scores(h, data.users, own, data.candidates, settings.model.temperature)


def presence(present: Tensor, data: StepData) -> Tensor:
    """Bool [M, b, S]: whether the item of each cell has a row in each modality; ``present`` bool [M, I]."""
    own = present[:, data.columns]
    shared = present[:, data.candidate_items].unsqueeze(1).expand(-1, own.shape[1], -1)
    return torch.cat([own, shared], dim=2)


def train_step(
    models: Sequence[ModalityModel],
    data: StepData,
    rows: Sequence[ItemRows],
    present: Tensor | None,
    mesh: Mesh,
    settings: Settings,
) -> Tensor:
    """Move every hosted model by one step; return all modalities' mean losses, float64 [M, 2] (truth, KL).

    Every worker calls this for the same step. Losses are means over the global batch, whatever the number of replicas.

    Args:
        models: the hosted ones, in the mesh's order.
        data: this replica's part.
        rows: each model's features of ``data.nodes.items``.
        present: bool [M, I], or None when missing modalities are not to be told apart.
        mesh: where scores and gradients go.
        settings: all settings.
    """
    scores = [step_scores(model, data, own, settings) for model, own in zip(models, rows, strict=True)]
    gathered = mesh.start_gather(torch.stack([s.detach() for s in scores]))
    loss, scale = settings.loss, 1 / data.total
    truths = [
        truth_gradient(own, data.masked, loss.supervised, scale) for own in scores
    ]  # while the scores travel
    peers = make_peers(
        gathered(),
        None if present is None else presence(present, data),
        data.masked,
        teacher=loss.teacher,
        temperature=loss.distill_temperature,
    )
    losses = torch.zeros(mesh.num_modalities, 2, dtype=torch.float64, device=mesh.device)
    for model, own, (truth, grad) in zip(models, scores, truths, strict=True):
        weight = loss.distill_weight * scale
        kl = add_kl_gradient(own, peers, data.masked, model.number, weight, grad)
        losses[model.number, 0], losses[model.number, 1] = truth, kl
        model.optimizer.zero_grad()
        own.backward(grad)
    _update(models, mesh, settings.training.grad_clip)
    mesh.sum_world(losses)
    return losses.cpu() / data.total


def _update(models: Sequence[ModalityModel], mesh: Mesh, grad_clip: float) -> None:
    gradients = []
    for model in models:
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    mesh.sum_replicas(gradients)
    for model in models:
        if grad_clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        model.optimizer.step()


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
    named = dict(model.encoder.named_parameters())
    moments: dict[str, Tensor] = {}
    for name, parameter in named.items():
        for key, value in model.optimizer.state.get(parameter, {}).items():
            moments[f"{key}.{name}"] = value.detach().cpu()
    return {"weights": {n: p.detach().cpu() for n, p in named.items()}, "optimizer": moments}


def load_state(model: ModalityModel, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
    """Put back what :func:`state_tensors` gave.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.
    """
    load_weights(model.encoder, weights)
    named = dict(model.encoder.named_parameters())
    expected = {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq", "step") for name in named}
    if moments and set(moments) != expected:
        differing = sorted(expected ^ set(moments))
        raise ValueError(f"optimizer state missing or left over: {', '.join(differing[:3])}")
    for key, value in moments.items():
        kind, _, name = key.partition(".")
        parameter = named[name]
        if kind != "step" and value.shape != parameter.shape:
            raise ValueError(f"{key}: expected shape {tuple(parameter.shape)}, got {tuple(value.shape)}")
        model.optimizer.state[parameter][kind] = (
            value.clone() if kind == "step" else value.to(parameter.device).clone()
        )


def load_weights(encoder: Encoder, weights: Mapping[str, Tensor]) -> None:
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
