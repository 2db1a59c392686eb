"""The linear peer: scores by hand, the weight that validation chooses, new items, and its place in a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import planted

import gnnmr_dist as gnnmr
from gnnmr_dist.baselines import EASE_GRID
from gnnmr_dist.closed_form import value_on
from gnnmr_dist.config import ModelSettings
from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.ease import BaselineSkipped
from gnnmr_dist.errors import InputError
from gnnmr_dist.evaluation import Relevant, relevant_items
from gnnmr_dist.fusion import FusedScorer, LinearPeer, fit_linear_peer
from gnnmr_dist.linear_peer import FEATURE_WEIGHTS, _climb, choose_linear_peer, choose_weight
from gnnmr_dist.members import Member, item_features, members_of
from gnnmr_dist.ranking import EmbeddingScorer
from gnnmr_dist.runs import RunDirectory


class Fixed:
    """A scorer of two items whose rows are the users' numbers."""

    def scores(self, users: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([users, 10.0 * users], axis=1).astype(np.float32))


def test_scores_by_hand() -> None:
    networks = EmbeddingScorer(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]]))
    scorer = FusedScorer(networks, Fixed(), 0.5)
    assert scorer.scores(np.array([1, 0])).tolist() == [[2 + 0.5, 6 + 5, 10], [1, 3, 5]]  # item 2 is new


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return planted(tmp_path_factory.mktemp("fusion") / "d", 2)


def relevant(dataset: Dataset) -> Relevant:
    return relevant_items(dataset.interactions("valid"), dataset.num_users)


def random_networks(dataset: Dataset, scale: float) -> EmbeddingScorer:
    generator = torch.Generator().manual_seed(1)
    users, items = (torch.randn(n, 4, generator=generator) for n in (dataset.num_users, dataset.num_items))
    return EmbeddingScorer(users * scale, items)


def test_validation_chooses_the_linear_peer(dataset: Dataset) -> None:
    """It is never worse than its neighbours in the grid."""
    valid, graph = relevant(dataset), dataset.graph
    features = item_features(dataset, members_of(dataset, ModelSettings()))
    assert features is not None
    found = choose_linear_peer(graph, valid, features, metric="NDCG@20")
    assert isinstance(found, LinearPeer)
    assert found.l2 in EASE_GRID
    place = EASE_GRID.index(found.l2)
    near = [replace(found, l2=l2) for l2 in EASE_GRID[max(place - 1, 0) : place + 2]]
    place = FEATURE_WEIGHTS.index(found.feature_weight)
    near += [replace(found, feature_weight=w) for w in FEATURE_WEIGHTS[max(place - 1, 0) : place + 2]]
    values = {
        peer: value_on(valid, fit_linear_peer(graph, peer, features), graph, "NDCG@20") for peer in near
    }
    assert values[found] == max(values.values())
    assert len(set(values.values())) > 1
    assert choose_linear_peer(graph, valid, features, metric="NDCG@20") == found


def test_the_search_climbs_both_ways() -> None:
    def value(best: float) -> Callable[[LinearPeer], float]:
        return lambda peer: -abs(math.log(peer.l2 / best))

    for best in EASE_GRID:
        assert _climb(LinearPeer(100.0, 0.5, 0.2), "l2", EASE_GRID, value(best)) == LinearPeer(best, 0.5, 0.2)


def test_without_features_none_are_weighed(dataset: Dataset) -> None:
    found = choose_linear_peer(dataset.graph, relevant(dataset), None)
    assert isinstance(found, LinearPeer)
    assert found.feature_weight == 0


def test_features_without_room_are_left_out(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    members = members_of(dataset, ModelSettings())
    monkeypatch.setattr(
        "gnnmr_dist.members.ease_too_large",
        lambda graph, num_columns, num_entries: BaselineSkipped("too big") if num_entries > 0 else None,
    )
    assert item_features(dataset, members) is None
    assert item_features(dataset, [Member("id", ())]) is None


def test_validation_chooses_the_weight(dataset: Dataset) -> None:
    valid, graph, networks = relevant(dataset), dataset.graph, random_networks(dataset, 1.0)
    linear = fit_linear_peer(graph, LinearPeer(100.0), None)
    weight = choose_weight(networks, 2, linear, graph, valid, metric="NDCG@20")
    values = {
        w: value_on(valid, FusedScorer(networks, linear, 2 * w), graph, "NDCG@20")
        for w in (0.0, 0.5, 12.0, weight)
    }
    assert values[weight] == max(values.values())
    assert values[weight] > values[0.0]  # noise alone is worse


def test_a_peer_that_does_not_help_has_no_weight(dataset: Dataset) -> None:
    valid, graph = relevant(dataset), dataset.graph
    truth = torch.zeros(dataset.num_users, dataset.num_items)
    pairs = dataset.interactions("valid")
    truth[pairs.users.tolist(), pairs.items.tolist()] = 1e6
    oracle = EmbeddingScorer(truth, torch.eye(dataset.num_items))
    linear = fit_linear_peer(graph, LinearPeer(100.0), None)
    assert choose_weight(oracle, 2, linear, graph, valid, metric="Recall@5") == 0


def test_no_room_for_its_matrix(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gnnmr_dist.linear_peer.ease_too_large", lambda graph: BaselineSkipped("EASE skipped: too big")
    )
    assert choose_linear_peer(dataset.graph, relevant(dataset), None) == BaselineSkipped(
        "EASE skipped: too big"
    )


def test_in_a_run(dataset: Dataset, tmp_path: Path) -> None:
    run = gnnmr.fit(dataset, tmp_path / "run", epochs=2, global_batch_size=64, embedding_dim=8)
    assert run.rows[-2:] == ["linear-peer", "fused"]
    kept = json.loads((tmp_path / "run" / "model" / "fusion.json").read_text())
    weight = kept.pop("weight")
    members = members_of(dataset, ModelSettings())
    linear = fit_linear_peer(dataset.graph, LinearPeer(**kept), item_features(dataset, members))
    metrics = run.evaluate("valid", baselines=False)
    users, items = run.embeddings("concatenation")
    alone = linear.scores(np.arange(dataset.num_users)).numpy()
    for row, expected in (("fused", users @ items.T + 2 * weight * alone), ("linear-peer", alone)):
        table = run.recommend(dataset.user_ids[:1].tolist(), k=3, row=row, include_seen=True)
        best = np.sort(expected[0])[::-1][:3]
        np.testing.assert_allclose(table["score"].to_numpy(), best, atol=1e-3)
    assert metrics["fused"]["Recall@20"] >= metrics["concatenation"]["Recall@20"]
    for row in ("fused", "linear-peer"):
        with pytest.raises(InputError, match="that has embeddings"):
            run.embeddings(row)


def test_a_run_without_it(dataset: Dataset, tmp_path: Path) -> None:
    run = gnnmr.fit(dataset, tmp_path / "run", epochs=1, global_batch_size=64, linear_peer=False)
    assert "fused" not in run.rows
    assert not (tmp_path / "run" / "model" / "fusion.json").exists()
    with pytest.raises(InputError, match=r"^row: expected one of"):
        run.recommend(dataset.user_ids[:1].tolist(), row="fused")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"l2": 0, "user_power": 0, "item_power": 0, "weight": 1}',
        '{"l2": 1, "user_power": 0, "item_power": 0, "weight": NaN}',
        '{"l2": 1, "user_power": -1, "item_power": 0, "weight": 1}',
        '{"l2": 1, "user_power": 0, "item_power": 0, "feature_weight": -1, "weight": 1}',
        '{"l2": 1, "user_power": 0, "item_power": 0, "other": 0, "weight": 1}',
        "[]",
        '{"l2": "x", "user_power": 0, "item_power": 0, "weight": 1}',
    ],
)
def test_a_damaged_file_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "fusion.json").write_text(content)
    with pytest.raises(InputError, match=r"fusion\.json: expected"):
        RunDirectory(str(tmp_path)).fusion()
