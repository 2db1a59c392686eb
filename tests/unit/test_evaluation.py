"""Full ranking against brute force, and the same bits for any number of workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_settings, planted, random_graph
from torch import Tensor

from gnnmr_dist import ranking
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.interactions import Interactions
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.ensemble import aligned_average, average, concatenation
from gnnmr_dist.evaluation import (
    ENSEMBLES,
    Relevant,
    RowResult,
    combine,
    evaluate,
    make_scorer,
    modality_vectors,
    presence_table,
    relevant_items,
)
from gnnmr_dist.inference import embed_all
from gnnmr_dist.members import members_of
from gnnmr_dist.ranking import EmbeddingScorer, item_lists
from gnnmr_dist.training import build_model

KS = (1, 3, 5)
NUM_USERS, NUM_ITEMS = 23, 11


def problem() -> tuple[Graph, Relevant, Tensor]:
    """A train graph, test items elsewhere (some users have none), and vectors [2, N, 4] without equal scores."""
    graph = random_graph(0, NUM_USERS, NUM_ITEMS, 60)
    random = np.random.default_rng(1)
    taken = set(zip(*(a.tolist() for a in graph.edges(np.arange(60))), strict=True))
    test = [
        (u, i)
        for u in range(NUM_USERS)
        for i in range(NUM_ITEMS)
        if (u, i) not in taken and random.random() < 0.15
    ]
    users, items = (np.array(column, np.int32) for column in zip(*test, strict=True))
    relevant = relevant_items(Interactions(users, items, None, None), NUM_USERS)
    assert 0 < relevant.users.size < NUM_USERS
    return (
        graph,
        relevant,
        torch.randn(2, NUM_USERS + NUM_ITEMS, 4, generator=torch.Generator().manual_seed(2)),
    )


class ThreadMesh:
    """The mesh's collectives between threads, each standing for a worker."""

    device = torch.device("cpu")

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._board, self._barrier = rank, len(board), board, barrier

    def gather_world(self, own: Tensor) -> list[Tensor]:
        self._board[self.rank] = own.clone()
        self._barrier.wait()
        every = list(self._board)
        self._barrier.wait()
        return every

    def sum_world(self, t: Tensor) -> None:
        t.copy_(torch.stack(self.gather_world(t)).sum(dim=0))


def on_workers(world_size: int, task: Callable[[Any], RowResult]) -> list[RowResult]:
    board: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size, timeout=20)
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(task, [ThreadMesh(rank, board, barrier) for rank in range(world_size)]))


def brute_force(graph: Graph, relevant: Relevant, scores: np.ndarray, k: int) -> dict[str, float]:
    """Metrics of one cut-off by plain loops over users and places."""
    popularity = graph.degree()[graph.num_users :]
    sums, shown = (
        dict.fromkeys(("Recall", "NDCG", "Precision", "HitRate", "MRR", "AveragePopularity"), 0.0),
        set(),
    )
    for row, user in enumerate(relevant.users):
        truth = set(
            relevant.items.items[relevant.items.indptr[row] : relevant.items.indptr[row + 1]].tolist()
        )
        seen = set((graph.indices[graph.indptr[user] : graph.indptr[user + 1]] - graph.num_users).tolist())
        ranked = [i for i in np.argsort(-scores[user], kind="stable").tolist() if i not in seen][:k]
        hits = [place for place, item in enumerate(ranked, start=1) if item in truth]
        shown |= set(ranked)
        sums["Recall"] += len(hits) / len(truth)
        sums["Precision"] += len(hits) / k
        sums["HitRate"] += bool(hits)
        sums["MRR"] += 1 / hits[0] if hits else 0
        ideal = sum(1 / log2(p + 1) for p in range(1, min(k, len(truth)) + 1))
        sums["NDCG"] += sum(1 / log2(p + 1) for p in hits) / ideal
        sums["AveragePopularity"] += float(popularity[ranked].mean()) if ranked else 0
    means = {f"{name}@{k}": total / relevant.users.size for name, total in sums.items()}
    return means | {f"Coverage@{k}": len(shown) / graph.num_items}


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("block", [1, 4, 256])
def test_same_bits_for_any_number_of_workers(
    world_size: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "USERS_PER_BLOCK", block)
    graph, relevant, vectors = problem()
    scorer = make_scorer("concatenation", ["a", "b"], vectors, graph, None)
    single = evaluate(scorer, graph, relevant, KS, one_process(2))
    for result in on_workers(world_size, lambda mesh: evaluate(scorer, graph, relevant, KS, mesh)):
        assert result.means == single.means
        for name, values in result.per_user.items():
            assert values.shape == (relevant.users.size,)  # each user once
            assert np.array_equal(values, single.per_user[name])


@pytest.mark.parametrize("row", ["b", *ENSEMBLES])
def test_every_row_equals_brute_force(row: str) -> None:
    graph, relevant, vectors = problem()
    users, items = list(vectors[:, :NUM_USERS]), list(vectors[:, NUM_USERS:])
    pairs = {
        "b": (users[1], items[1]),
        "concatenation": concatenation(users, items),
        "average": average(users, items),
        "aligned-average": aligned_average(users, items),
    }
    h_u, h_i = pairs[row]
    scores = (h_u.double() @ h_i.double().T).numpy() + 1e-6 * graph.degree()[NUM_USERS:]
    means = evaluate(
        make_scorer(row, ["a", "b"], vectors, graph, None), graph, relevant, KS, one_process(2)
    ).means
    for k in KS:
        for name, value in brute_force(graph, relevant, scores, k).items():
            assert means[name] == pytest.approx(value, abs=1e-12), name


def test_masking_more_items_changes_the_ranking() -> None:
    graph, relevant, vectors = problem()
    scorer = make_scorer("a", ["a", "b"], vectors, graph, None)
    users, items = relevant.items.pairs(np.arange(relevant.users.size))
    everything_relevant = item_lists(relevant.users[users], items, NUM_USERS)
    means = evaluate(scorer, graph, relevant, KS, one_process(2), also_masked=everything_relevant).means
    assert means["Recall@5"] == 0
    assert evaluate(scorer, graph, relevant, KS, one_process(2)).means["Recall@5"] > 0


def test_missing_modalities_are_left_out_of_the_concatenation_on_request() -> None:
    graph, _, vectors = problem()
    present = torch.ones(2, NUM_ITEMS, dtype=torch.bool)
    present[0, 4] = False
    everyone = np.arange(NUM_USERS)
    with_all, without = (
        make_scorer("concatenation", ["a", "b"], vectors, graph, p).scores(everyone) for p in (None, present)
    )
    other = torch.arange(NUM_ITEMS) != 4
    torch.testing.assert_close(with_all[:, other], without[:, other])
    # item 4 has the second modality only, so twice its score
    popularity = 1e-6 * graph.degree()[NUM_USERS + 4]
    own = vectors[1, :NUM_USERS] @ vectors[1, NUM_USERS + 4]
    torch.testing.assert_close(without[:, 4], 2 * own + popularity)


def test_relevant_items_and_unknown_ensembles() -> None:
    interactions = Interactions(np.array([3, 1, 3], np.int32), np.array([2, 0, 1], np.int32), None, None)
    relevant = relevant_items(interactions, 6)
    assert relevant.users.tolist() == [1, 3]
    assert [relevant.items.pairs(np.array([r]))[1].tolist() for r in (0, 1)] == [[0], [1, 2]]
    with pytest.raises(ValueError, match="unknown ensemble"):
        combine("sum", [], [], None)


def test_the_validation_mask_is_not_the_test_mask(tmp_path: Path) -> None:
    """Test masks train items only: a validation item may be recommended, a train item never."""
    dataset = planted(tmp_path / "d")
    graph = dataset.graph
    relevant = relevant_items(dataset.interactions("test"), dataset.num_users)
    train, valid = (np.zeros((dataset.num_users, dataset.num_items), np.float32) for _ in range(2))
    users, items = graph.edges(np.arange(graph.num_edges))
    train[users, items] = 10
    held = dataset.interactions("valid")
    valid[held.users, held.items] = 10

    def recommended(wanted: np.ndarray) -> float:
        scorer = EmbeddingScorer(torch.from_numpy(wanted), torch.eye(dataset.num_items))
        return evaluate(scorer, graph, relevant, (5,), one_process(2)).means["Recall@5"]

    test = np.zeros_like(train)
    split = dataset.interactions("test")
    test[split.users, split.items] = 5
    assert recommended(test + train) == recommended(test)  # train items are masked
    assert recommended(test + valid) < recommended(test)  # validation items compete


def test_presence_and_vectors_of_a_data_set(tmp_path: Path) -> None:
    dataset = planted(tmp_path / "d", 3, missing=0.3)
    settings = make_settings(model={"item_id": "none"})
    members = members_of(dataset, settings.model)
    table = presence_table(dataset, members)
    assert table.shape == (3, 64)
    assert [int((~row).sum()) for row in table] == [m.missing for m in dataset.modalities]
    shape = (dataset.num_users, dataset.num_items)
    encoders = [
        (m, build_model(n, m, shape, settings, torch.device("cpu")).encoder) for n, m in enumerate(members)
    ]
    vectors = modality_vectors(encoders, dataset, settings.model, one_process(3))
    torch.testing.assert_close(vectors.norm(dim=2), torch.ones(3, sum(shape)))  # cosine: unit length
    for (member, encoder), own in zip(encoders, vectors, strict=True):
        raw = embed_all(encoder, dataset.graph, [dataset.features(member.name)])
        torch.testing.assert_close(own, torch.nn.functional.normalize(raw, dim=1))
