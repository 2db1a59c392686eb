"""The training step: against a dense full-graph reference, what it moves, what it must not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    ENCODERS,
    World,
    bag_table,
    category_table,
    dense_table,
    make_world,
    weights_of,
    with_graph,
    without_edge,
)
from torch import Tensor

from gnnmr_dist.data.batches import GlobalBatch, global_batch, known_candidates
from gnnmr_dist.data.sampling import NeighborSampling
from gnnmr_dist.data.steps import StepData, step_data
from gnnmr_dist.losses import bpr_loss, make_peers, mutual_kl_loss, sampled_softmax_loss
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.training import (
    ModalityModel,
    first_not_finite,
    load_state,
    presence,
    state_tensors,
    step_scores,
    train_step,
)

Weights = dict[str, Tensor]


def world_batch(world: World, step: int) -> GlobalBatch:
    settings = world.settings
    return global_batch(
        world.graph,
        settings.training.seed,
        0,
        step,
        batch_size=settings.training.global_batch_size,
        num_candidates=settings.loss.num_candidates,
    )


# --- the reference: dense matrices, the formulas of the paper and of the defaults, no code of the package's models


def dense_embeddings(world: World, m: int, w: Weights, batch: GlobalBatch) -> Tensor:
    """Full-graph GAT: self-loops, degree scaling, LeakyReLU after every layer, mean of layers 0..2."""
    graph, table = world.graph, world.tables[m]
    adjacency = torch.zeros(graph.num_nodes, graph.num_nodes)
    users, items = graph.edges(np.arange(graph.num_edges))
    adjacency[users, items + graph.num_users] = 1
    if world.settings.sampling.exclude_supervision:
        adjacency[batch.users, batch.items + graph.num_users] = 0
    adjacency = adjacency + adjacency.T
    degree = 1 + adjacency.sum(dim=1)
    allowed = (adjacency + torch.eye(graph.num_nodes)) > 0
    scaling = (degree[:, None] / degree[None, :]).sqrt()
    features = torch.from_numpy(table.values)  # type: ignore[union-attr]
    h_items = (
        features @ w["item_inputs.0.project.weight"].T + w["item_inputs.0.project.bias"] + w["item_table"]
    )
    h = torch.cat([w["user_input.table"], h_items])
    layers = [h]
    for number in range(2):
        x = h @ w[f"layers.{number}.linear.weight"].T
        source = (x * w[f"layers.{number}.att_source"]).sum(dim=1)
        destination = (x * w[f"layers.{number}.att_destination"]).sum(dim=1)
        logits = torch.nn.functional.leaky_relu(destination[:, None] + source[None, :], 0.2)
        attention = torch.softmax(logits.masked_fill(~allowed, float("-inf")), dim=1) * scaling
        h = torch.nn.functional.leaky_relu(attention @ x)
        layers.append(h)
    mean: Tensor = sum(layers) / 3  # type: ignore[assignment]
    return mean


def dense_losses(world: World, weights: list[Weights], batch: GlobalBatch) -> list[Tensor]:
    """Per modality: sampled softmax + lambda KL(softmax of the other's scores || own softmax), over B."""
    known = torch.from_numpy(known_candidates(world.graph, batch.users, batch.candidates))
    hidden = torch.cat([torch.zeros(batch.size, 1, dtype=torch.bool), known], dim=1)
    logits = []
    for m, w in enumerate(weights):
        h = torch.nn.functional.normalize(dense_embeddings(world, m, w, batch), dim=1)
        users, items = h[: world.graph.num_users], h[world.graph.num_users :]
        positive = (users[batch.users] * items[batch.items]).sum(dim=1, keepdim=True)
        scores = torch.cat([positive, users[batch.users] @ items[batch.candidates].T], dim=1)
        logits.append(
            torch.log_softmax((scores / world.settings.model.temperature).masked_fill(hidden, -1e30), dim=1)
        )
    losses = []
    for m, own in enumerate(logits):
        teacher = logits[1 - m].detach()
        kl = (teacher.exp() * (teacher - own)).masked_fill(hidden, 0).sum()
        losses.append((-own[:, 0].sum() + world.settings.loss.distill_weight * kl) / batch.size)
    return losses


@pytest.mark.parametrize("exclude", [True, False])
def test_sampling_all_neighbours_trains_as_the_full_graph_does(exclude: bool) -> None:
    world = make_world(
        model={"activation": "leaky_relu", "identity_init": False},
        sampling={"num_neighbors": [-1, -1], "exclude_supervision": exclude},
    )
    models = world.models()
    weights = [{name: v.requires_grad_() for name, v in weights_of(model).items()} for model in models]
    optimizers = [torch.optim.Adam(w.values(), lr=world.settings.training.learning_rate) for w in weights]
    for step in (0, 1, 2, 0, 1):
        got = world.train(models, world.step(step))
        losses = dense_losses(world, weights, world_batch(world, step))
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        totals = got[:, 0] + world.settings.loss.distill_weight * got[:, 1]
        assert totals.tolist() == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    for model, reference in zip(models, weights, strict=True):
        for name, parameter in model.encoder.named_parameters():
            torch.testing.assert_close(parameter, reference[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("missing", [(), (1, 3)])
@pytest.mark.parametrize("supervised", ["softmax", "bpr"])
def test_one_step_moves_every_parameter(encoder: str, missing: tuple[int, ...], supervised: str) -> None:
    """All but ``missing`` where no item lacks the modality: nothing reads it then."""
    world = make_world(missing, 3, model={"encoder": encoder}, loss={"supervised": supervised})
    models = world.models()
    before = [weights_of(model) for model in models]
    world.train(models, world.step())
    for model, old in zip(models, before, strict=True):
        unmoved = {name for name, value in weights_of(model).items() if torch.equal(value, old[name])}
        assert unmoved == (set() if missing and model.number == 0 else {"item_inputs.0.missing"})


def test_a_step_moves_only_what_its_rows_reach() -> None:
    """With one layer of one neighbour and no candidates, a user far from the batch keeps its vector."""
    world = make_world(
        loss={"supervised": "bpr", "num_candidates": 0},
        sampling={"num_neighbors": [1]},
        training={"global_batch_size": 1},
    )
    models, data = world.models(), world.step()
    before = weights_of(models[0])["user_input.table"]
    world.train(models, data)
    moved = (weights_of(models[0])["user_input.table"] != before).any(dim=1)
    assert set(moved.nonzero().flatten().tolist()) <= set(data.nodes.users.tolist())
    assert not moved.all()


def changed_peer(world: World) -> World:
    first, second = world.tables
    return replace(world, tables=(first, replace(second, values=second.values * 3 + 1)))  # type: ignore[call-arg]


def trained(world: World, steps: int = 3) -> list[Weights]:
    models = world.models()
    for step in range(steps):
        world.train(models, world.step(step))
    return [weights_of(model) for model in models]


def same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_without_mutual_learning_a_peer_changes_no_bit() -> None:
    world = make_world(loss={"distill_weight": 0})
    (own, peer), (own_again, peer_again) = trained(world), trained(changed_peer(world))
    assert same(own, own_again)
    assert not same(peer, peer_again)


def test_with_mutual_learning_a_peer_matters_only_as_teacher() -> None:
    world = make_world(loss={"distill_weight": 0.5})
    other = changed_peer(world)
    assert not same(trained(world)[0], trained(other)[0])
    # the truth loss of the first step sees nothing of the peer, the KL does
    first, second = (w.train(w.models(), w.step()) for w in (world, other))
    assert first[0, 0] == second[0, 0]
    assert first[0, 1] != second[0, 1]


@dataclass(frozen=True)
class OneOfTwo:
    """Stands for the mesh of a worker that hosts one modality and receives both modalities' scores."""

    everyone: Tensor
    num_modalities: int = 2
    groups: int = 2
    replicas: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def start_gather(self, own: Tensor) -> Callable[[], Tensor]:
        assert own.shape[0] == 1
        return lambda: self.everyone

    def sum_replicas(self, tensors: list[Tensor]) -> None:
        pass

    def sum_rows(self, gradients: list[Tensor]) -> list[Tensor]:
        return gradients

    def sum_step(self, losses: Tensor) -> Tensor:
        return losses


@pytest.mark.parametrize("own", [0, 1])
def test_each_modality_needs_only_the_others_scores(own: int) -> None:
    """What one worker computes for its modality is, bit for bit, what one process computes for all: no gradient of a
    modality's KL reaches its peers."""
    world = make_world()
    data, together = world.step(), world.models()
    rows = world.rows(data)
    scores = [step_scores(m, data, rows[m.number], world.settings) for m in together]
    everyone = data.cells.flat(scores)
    alone: Any = world.models()[own]
    train_step([alone], data, [rows[own]], None, OneOfTwo(everyone), world.settings)  # type: ignore[arg-type]
    world.train(together, data)
    assert same(weights_of(alone), weights_of(together[own]))


def test_returned_losses_are_means_over_the_global_batch() -> None:
    for supervised in ("softmax", "bpr"):
        world = make_world((1,), loss={"supervised": supervised})
        data, models = world.step(), world.models()
        rows = world.rows(data)
        scores = [whole_rows(m, data, rows[m.number], world).detach() for m in models]
        masked = data.cells.rows(*data.cells.masked)
        peers = make_peers(torch.stack(scores), whole_presence(world, data), masked)
        expected = []
        for m, s in enumerate(scores):
            bpr = supervised == "bpr"
            truth = bpr_loss(s[:, 0], s[:, 1]) if bpr else sampled_softmax_loss(s, masked)
            expected.append([truth.item() / 8, mutual_kl_loss(s, peers, masked, m).item() / 8])
        np.testing.assert_allclose(world.train(models, data).numpy(), expected, rtol=1e-6)


def test_presence_by_hand() -> None:
    world = make_world((1, 3), loss={"supervised": "bpr"})
    data = world.step()
    own, shared = presence(world.present, data)
    assert (own.shape, shared.shape) == ((2, 8, 2), (2, 5))
    table = torch.cat([own, shared.unsqueeze(1).expand(-1, 8, -1)], dim=2)
    items = torch.cat([data.own_items, data.candidate_items.expand(8, -1)], dim=1)
    assert torch.equal(table[0], (items != 1) & (items != 3))
    assert table[1].all()


def whole_rows(model: ModalityModel, data: StepData, rows: ItemRows, world: World) -> Tensor:
    """A modality's scores as rows [b, S]."""
    return data.cells.rows(*step_scores(model, data, rows, world.settings))


def whole_presence(world: World, data: StepData) -> Tensor:
    """[M, b, S]."""
    own, shared = presence(world.present, data)
    return data.cells.rows(own, shared.unsqueeze(1).expand(-1, data.users.numel(), -1))


def gradients(world: World, models: list[ModalityModel], replicas: int) -> list[Tensor]:
    """Sum over the replicas' shares of each share's gradient."""
    for model in models:
        model.optimizer.zero_grad()
    for replica in range(replicas):
        data = world.step(replica=replica, replicas=replicas)
        rows = world.rows(data)
        scores = [whole_rows(model, data, rows[model.number], world) for model in models]
        masked = data.cells.rows(*data.cells.masked)
        peers = make_peers(torch.stack(scores), whole_presence(world, data), masked)
        for model, s in zip(models, scores, strict=True):
            loss = sampled_softmax_loss(s, masked) + mutual_kl_loss(s, peers, masked, model.number)
            (loss / data.total).backward()
    return [p.grad.to_dense() for model in models for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("replicas", [2, 3, 20])
def test_replicas_gradients_add_up_to_the_whole_batchs(replicas: int) -> None:
    world = make_world((1,), sampling={"num_neighbors": [2, 2]})
    models = world.models()
    whole = [g.clone() for g in gradients(world, models, 1)]
    for got, want in zip(gradients(world, models, replicas), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_share_without_rows_or_candidates_has_no_loss(encoder: str) -> None:
    """An epoch's last batch may have fewer rows than there are replicas, and BPR may have no candidates."""
    world = make_world(
        model={"encoder": encoder, "heads": 2},
        loss={"supervised": "bpr", "num_candidates": 0},
        training={"global_batch_size": 1},
    )
    items = world.graph.num_items
    world = replace(world, tables=(dense_table(items), category_table(items), bag_table(items)))
    data = world.step(replica=0, replicas=2)
    assert (data.users.numel(), data.total) == (0, 1)
    models = world.models()
    assert not world.train(models, data).any()
    assert not any(
        p.grad.to_dense().any() for model in models for p in model.parameters() if p.grad is not None
    )


def test_a_share_of_the_rows_is_divided_by_the_whole_batch() -> None:
    """A mean over a replica's own rows would count rows of small shares more: a mean of per-rank means."""
    world = make_world()
    for replica in range(3):
        models, same_models = world.models(), world.models()
        data = world.step(replica=replica, replicas=3)
        rows, size = world.rows(data), data.cells.row_user.numel()
        assert 0 < size < data.total == 8
        world.train(models, data)
        scores = [whole_rows(m, data, rows[m.number], world) for m in same_models]
        masked = data.cells.rows(*data.cells.masked)
        peers = make_peers(torch.stack(scores), None, masked)
        weight = world.settings.loss.distill_weight
        for model, own in zip(same_models, scores, strict=True):
            loss = sampled_softmax_loss(own, masked) + weight * mutual_kl_loss(
                own, peers, masked, model.number
            )
            (loss / 8).backward()
        for got, want in zip(models[0].parameters(), same_models[0].parameters(), strict=True):
            expected = torch.zeros_like(want) if want.grad is None else want.grad
            assert got.grad is not None
            torch.testing.assert_close(got.grad.to_dense(), expected.to_dense())


@pytest.mark.parametrize("exclude", [True, False])
def test_a_positives_score_does_not_know_its_own_edge(exclude: bool) -> None:
    """With exclusion on, scores are those of a graph that never had the batch's edge; with it off they are not."""
    world = make_world(sampling={"exclude_supervision": exclude})
    users, items = world.graph.edges(np.array([4]))
    cut = with_graph(world, without_edge(world.graph, int(users[0]), int(items[0])))
    batch = GlobalBatch(0, 0, users, items, np.array([0]), np.array([2, 5]))
    scores = []
    for w in (world, cut):
        sampler = NeighborSampling(w.graph, [-1, -1], 0)
        data = step_data(w.graph, sampler, batch, with_negatives=False, exclude_supervision=exclude)
        scores.append(whole_rows(world.models()[0], data, w.rows(data)[0], world))
    assert torch.allclose(*scores, rtol=1e-5, atol=1e-6) is exclude


def test_gradients_start_from_zero_at_every_step() -> None:
    """A step that never zeroes gradients trains something else, and no metric shows it."""
    world = make_world()
    clean, dirty = world.models(), world.models()
    for parameter in (p for model in dirty for p in model.parameters()):
        parameter.grad = torch.full_like(parameter, 1e3)
    world.train(clean, world.step())
    world.train(dirty, world.step())
    assert all(same(weights_of(a), weights_of(b)) for a, b in zip(clean, dirty, strict=True))


def test_clipping_bounds_each_modalitys_own_gradient() -> None:
    free, clipped = make_world(), make_world(training={"grad_clip": 1e-3})
    norms = []
    for world in (free, clipped):
        models = world.models()
        world.train(models, world.step())
        norms.append(
            [torch.cat([p.grad.to_dense().flatten() for p in m.parameters()]).norm().item() for m in models]
        )  # type: ignore[union-attr]
    assert min(norms[0]) > 1e-3
    assert norms[1] == pytest.approx([1e-3, 1e-3], rel=1e-3)


def test_bfloat16_trains_and_stays_near() -> None:
    losses = [
        w.train(w.models(), w.step()) for w in (make_world(), make_world(training={"precision": "bfloat16"}))
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.05)
    assert not torch.equal(losses[0], losses[1])


def test_a_modality_whose_loss_is_not_finite_is_named() -> None:
    world, names = make_world(), ["text", "image"]
    models = world.models()
    assert first_not_finite(world.train(models, world.step()), names) is None
    with torch.no_grad():
        models[1].encoder.user_input.table.fill_(float("nan"))
    losses = world.train(models, world.step())
    assert torch.isnan(losses[0, 1]), "the teacher's NaN reaches the first modality's KL"
    assert first_not_finite(losses, names) == "image"
    assert first_not_finite(torch.tensor([[1.0, 0.0], [1.0, float("inf")]]), names) == "image"


def test_models_are_functions_of_seed_and_number() -> None:
    world = make_world()
    torch.manual_seed(1)
    first = [weights_of(m) for m in world.models()]
    torch.manual_seed(2)
    again = [weights_of(m) for m in world.models()]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["user_input.table"], first[1]["user_input.table"])
    other = make_world(training={"seed": 1}).models()[0]
    assert not torch.equal(first[0]["user_input.table"], weights_of(other)["user_input.table"])


def test_state_goes_on_bit_for_bit() -> None:
    world = make_world()
    models = world.models()
    world.train(models, world.step(0))
    kept = [
        {part: {k: v.clone() for k, v in tensors.items()} for part, tensors in state_tensors(m).items()}
        for m in models
    ]
    world.train(models, world.step(1))
    fresh = world.models()
    for model, state in zip(fresh, kept, strict=True):
        load_state(model, state["weights"], state["optimizer"])
    world.train(fresh, world.step(1))
    assert all(same(weights_of(a), weights_of(b)) for a, b in zip(models, fresh, strict=True))
    without_moments = world.models()
    for model, state in zip(without_moments, kept, strict=True):
        load_state(model, state["weights"], {})
    world.train(without_moments, world.step(1))
    assert not same(weights_of(without_moments[0]), weights_of(models[0]))  # Adam's moments matter


def test_state_that_does_not_fit_is_refused() -> None:
    world = make_world()
    model = world.models()[0]
    world.train([model, world.models()[1]], world.step())
    state = state_tensors(model)
    weights, moments = state["weights"], state["optimizer"]
    name = "user_input.table"
    broken: list[tuple[Weights, Weights]] = [
        ({k: v for k, v in weights.items() if k != name}, moments),
        (weights | {"more": torch.zeros(1)}, moments),
        (weights | {name: torch.zeros(1)}, moments),
        (weights, {k: v for k, v in moments.items() if k != f"exp_avg.{name}"}),
        (weights, moments | {"exp_avg.more": torch.zeros(1)}),
        (weights, moments | {f"momentum.{name}": torch.zeros(1)}),
        (weights, moments | {f"exp_avg.{name}": torch.zeros(1)}),
    ]
    for some_weights, some_moments in broken:
        with pytest.raises(ValueError):  # noqa: PT011  (each names its tensor)
            load_state(world.models()[0], some_weights, some_moments)
