"""One replica's part of a step: places, masks, exclusions, rows of features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import bag_table, category_table, dense_table, make_world, random_graph

from gnnmr_dist.data.batches import global_batch
from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.data.sampling import NeighborSampling
from gnnmr_dist.data.steps import StepData, gather_rows, slice_block, step_data

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
    nodes = torch.cat([data.nodes.users, data.nodes.items + GRAPH.num_users])
    return nodes[data.nodes.order].numpy()


@pytest.mark.parametrize("with_negatives", [True, False])
def test_places_lead_to_the_batch(with_negatives: bool) -> None:
    batch = global_batch(GRAPH, 0, 1, 1, batch_size=8, num_candidates=4)
    data, offset = made(with_negatives), GRAPH.num_users
    node = seeds(data)
    assert np.array_equal(node[data.users], batch.users)
    assert np.array_equal(node[data.positives], batch.items + offset)
    assert np.array_equal(node[data.candidates], batch.candidates + offset)
    assert data.total == batch.size
    own = [batch.items, batch.negatives] if with_negatives else [batch.items]
    assert np.array_equal(data.columns, np.stack(own, axis=1))
    assert np.array_equal(data.masked[:, -4:], batch.known)
    assert not data.masked[:, : len(own)].any()
    if with_negatives:
        assert data.negatives is not None
        assert np.array_equal(node[data.negatives], batch.negatives + offset)


def test_a_row_without_a_negative_is_masked_there() -> None:
    users, items = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])  # user 0 knows every item
    graph = build_graph(users, items, 2, 3)
    batch = global_batch(graph, 0, 0, 0, batch_size=4, num_candidates=2)
    sampler = NeighborSampling(graph, [-1], 0)
    data = step_data(graph, sampler, batch, with_negatives=True, exclude_supervision=False)
    assert np.array_equal(data.masked[:, 1], batch.users == 0)
    assert (data.columns[:, 1] >= 0).all()


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
    for name in ("masked", "columns"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert all(torch.equal(part.candidate_items, whole.candidate_items) for part in parts)
    assert {part.total for part in parts} == {whole.total}


def test_a_replica_without_rows_still_has_the_candidates() -> None:
    empty = [made(replica=r, replicas=20) for r in range(20)]
    empty = [part for part in empty if part.users.numel() == 0]
    assert empty
    assert empty[0].masked.shape == (0, 2 + 4)
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
    ends = [*rows.offsets.tolist()[1:], rows.values.numel()]
    found = [rows.values[a:b].tolist() for a, b in zip(rows.offsets.tolist(), ends, strict=True)]
    assert found == [bag.codes[bag.offsets[i] : bag.offsets[i + 1]].tolist() for i in items]
    for table in (dense, category, bag):
        assert gather_rows(table, items).present.tolist() == [True, True, False, True]
        assert gather_rows(table, items[:0]).present.shape == (0,)


def test_moving_to_the_device_it_is_on_changes_nothing() -> None:
    data = made()
    assert data.to(torch.device("cpu")) is data
    moved = data.to(torch.device("meta"))
    assert moved.users.device.type == moved.nodes.order.device.type == "meta"
    assert moved.total == data.total
    assert replace(data, negatives=None).to(torch.device("meta")).negatives is None


def test_world_steps_cover_every_edge_once() -> None:
    world = make_world()
    steps = [world.step(s) for s in range(3)]
    pairs = np.concatenate([seeds_of(step, world.graph.num_users) for step in steps])
    assert len({tuple(pair) for pair in pairs}) == len(pairs) == world.graph.num_edges


def seeds_of(data: StepData, num_users: int) -> np.ndarray:
    node = torch.cat([data.nodes.users, data.nodes.items + num_users])[data.nodes.order]
    return np.stack([node[data.users].numpy(), data.columns[:, 0].numpy()], axis=1)
