"""One replica's part of a step: places, masks, exclusions, rows of features."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import bag_table, category_table, dense_table, make_world, random_graph

from gnnmr_dist.data.batches import global_batch, known_candidates
from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.data.sampling import NeighborSampling
from gnnmr_dist.data.steps import StepData, gather_rows, gather_single, slice_block, step_data

GRAPH = random_graph(2)


def made(with_negatives: bool = True, exclude: bool = True, replica: int = 0, replicas: int = 1) -> StepData:
    batch = global_batch(GRAPH, 0, 1, 1, batch_size=8, num_candidates=4)
    sampler = NeighborSampling(GRAPH, [-1, -1], 0)
    return step_data(
        GRAPH,
        sampler,
        batch,
        replica=replica,
        replicas=replicas,
        with_negatives=with_negatives,
        exclude_supervision=exclude,
    )


def seeds(data: StepData) -> np.ndarray:
    """Node numbers of the batch's nodes in the blocks' order."""
    return nodes_of(data, GRAPH.num_users).numpy()


@pytest.mark.parametrize("with_negatives", [True, False])
def test_places_lead_to_the_batch(with_negatives: bool) -> None:
    batch = global_batch(GRAPH, 0, 1, 1, batch_size=8, num_candidates=4)
    data, offset = made(with_negatives), GRAPH.num_users
    node = seeds(data)
    assert np.array_equal(node[data.users[data.cells.row_user]], batch.users)
    assert data.users.numel() == np.unique(batch.users).size < batch.size
    assert np.array_equal(node[data.candidates], batch.candidates + offset)
    assert data.total == batch.size
    own = [batch.items, batch.negatives] if with_negatives else [batch.items]
    assert np.array_equal(data.own_items, np.stack(own, axis=1))
    assert np.array_equal(node[data.own], np.stack(own, axis=1) + offset)
    masked = data.cells.rows(*data.cells.masked)
    assert np.array_equal(masked[:, len(own) :], known_candidates(GRAPH, batch.users, batch.candidates))
    assert not masked[:, : len(own)].any()


def test_a_row_without_a_negative_is_masked_there() -> None:
    users, items = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])  # user 0 knows every item
    graph = build_graph(users, items, 2, 3)
    batch = global_batch(graph, 0, 0, 0, batch_size=4, num_candidates=2)
    sampler = NeighborSampling(graph, [-1], 0)
    data = step_data(graph, sampler, batch, with_negatives=True, exclude_supervision=False)
    assert np.array_equal(data.cells.masked[0][:, 1], batch.users == 0)
    assert (data.own_items[:, 1] >= 0).all()


@pytest.mark.parametrize("exclude", [True, False])
def test_the_whole_batchs_edges_are_excluded_from_every_block(exclude: bool) -> None:
    batch = global_batch(GRAPH, 0, 1, 1, batch_size=8, num_candidates=4)
    supervision = set(zip(batch.users.tolist(), (batch.items + GRAPH.num_users).tolist(), strict=True))
    supervision |= {(b, a) for a, b in supervision}
    for replica in range(2):
        data = made(exclude=exclude, replica=replica, replicas=2)
        node = seeds(data)
        for block in data.nodes.blocks:
            edges = set(zip(node[block.destination].tolist(), node[block.source].tolist(), strict=True))
            assert bool(edges & supervision) is not exclude


def test_replicas_split_rows_and_share_candidates() -> None:
    whole, parts = made(), [made(replica=r, replicas=3) for r in range(3)]
    assert torch.equal(whole.own_items, torch.cat([part.own_items for part in parts]))
    masked = [part.cells.rows(*part.cells.masked) for part in (whole, *parts)]
    assert torch.equal(masked[0], torch.cat(masked[1:]))
    assert all(torch.equal(part.candidate_items, whole.candidate_items) for part in parts)
    assert {part.total for part in parts} == {whole.total}


def test_a_replica_without_rows_still_has_the_candidates() -> None:
    empty = [made(replica=r, replicas=20) for r in range(20)]
    empty = [part for part in empty if part.users.numel() == 0]
    assert empty
    assert [t.shape for t in empty[0].cells.masked] == [(0, 2), (0, 4)]
    assert empty[0].candidates.numel() == 4


def test_slices_of_the_graph_are_its_rows() -> None:
    degree = torch.from_numpy(GRAPH.degree().astype(np.float32))
    for start, stop in ((0, 3), (3, 4), (2, GRAPH.num_nodes)):
        block = slice_block(GRAPH, range(start, stop), degree)
        for row in range(stop - start):
            found = block.source[block.destination == row].numpy()
            assert np.array_equal(
                found, GRAPH.indices[GRAPH.indptr[start + row] : GRAPH.indptr[start + row + 1]]
            )
        assert torch.equal(block.degree[block.own], block.sampled())


def test_gathered_rows_are_those_of_the_items() -> None:
    items = np.array([4, 0, 3, 1])
    dense, category, bag = dense_table(5, 2, missing=(3,)), category_table(5, (3,)), bag_table(5, (3,))
    assert np.array_equal(gather_rows(dense, items).values, dense.values[items])
    assert gather_rows(category, items).values.tolist() == [1, 0, -1, 1]
    rows = gather_rows(bag, items)
    assert rows.offsets is not None
    found = [rows.values[a:b].tolist() for a, b in pairwise(rows.offsets.tolist())]
    assert found == [bag.codes[bag.offsets[i] : bag.offsets[i + 1]].tolist() for i in items]
    for table in (dense, category, bag):
        assert gather_rows(table, items).present.tolist() == [True, True, False, True]
        assert not gather_rows(table, items).complete
        assert gather_rows(table, items[:2]).complete
        assert gather_rows(table, items[:0]).present.shape == (0,)


def test_moving_to_the_device_it_is_on_changes_nothing() -> None:
    data = made()
    assert data.to(torch.device("cpu")) is data
    moved = data.to(torch.device("meta"))
    assert moved.users.device.type == moved.nodes.item_places.device.type == "meta"
    assert moved.total == data.total


def test_world_steps_cover_every_edge_once() -> None:
    world = make_world()
    steps = [world.step(s) for s in range(3)]
    pairs = np.concatenate([seeds_of(step, world.graph.num_users) for step in steps])
    assert len({tuple(pair) for pair in pairs}) == len(pairs) == world.graph.num_edges


def nodes_of(data: StepData, num_users: int) -> torch.Tensor:
    node = torch.empty(data.nodes.users.numel() + data.nodes.items.numel(), dtype=torch.int64)
    node[data.nodes.user_places] = data.nodes.users
    node[data.nodes.item_places] = data.nodes.items + num_users
    return node


def seeds_of(data: StepData, num_users: int) -> np.ndarray:
    node = nodes_of(data, num_users)
    return np.stack([node[data.users[data.cells.row_user]].numpy(), data.own_items[:, 0].numpy()], axis=1)


def test_half_precision_is_widened_exactly() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 32)
    rows = np.random.default_rng(0).permutation(finite.shape[0])
    out = gather_single(finite, rows)
    assert out.dtype == np.float32
    assert np.array_equal(out.view(np.uint32), finite[rows].astype(np.float32).view(np.uint32))
