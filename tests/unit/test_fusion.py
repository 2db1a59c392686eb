"""The linear peer: scores by hand, the weight that validation chooses, new items, and its place in a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import planted

import gnnmr_dist as gnnmr
from gnnmr_dist.baselines import BaselineSkipped, fit_ease
from gnnmr_dist.closed_form import choose, choose_fusion, value_on
from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.errors import InputError
from gnnmr_dist.evaluation import Relevant, relevant_items
from gnnmr_dist.fusion import FusedScorer, Fusion
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


def test_validation_chooses_weight_and_l2(dataset: Dataset) -> None:
    valid, graph, networks = relevant(dataset), dataset.graph, random_networks(dataset, 1.0)
    found = choose_fusion(networks, 2, graph, valid, metric="Recall@5")
    ease = choose("ease", graph, valid, metric="Recall@5")
    assert isinstance(found, Fusion)
    assert not isinstance(ease, BaselineSkipped)
    assert found.l2 == ease[1]
    values = {
        w: value_on(valid, FusedScorer(networks, ease[0], 2 * w), graph, "Recall@5") for w in (0.0, 0.5, 12.0)
    }
    best = value_on(valid, FusedScorer(networks, ease[0], 2 * found.weight), graph, "Recall@5")
    assert best >= max(values.values())
    assert best > values[0.0]  # noise alone is worse


def test_a_peer_that_does_not_help_has_no_weight(dataset: Dataset) -> None:
    valid, graph = relevant(dataset), dataset.graph
    truth = torch.zeros(dataset.num_users, dataset.num_items)
    pairs = dataset.interactions("valid")
    truth[pairs.users.tolist(), pairs.items.tolist()] = 1e6
    oracle = EmbeddingScorer(truth, torch.eye(dataset.num_items))
    found = choose_fusion(oracle, 2, graph, valid, metric="Recall@5")
    assert isinstance(found, Fusion)
    assert found.weight == 0


def test_in_a_run(dataset: Dataset, tmp_path: Path) -> None:
    run = gnnmr.fit(dataset, tmp_path / "run", epochs=2, global_batch_size=64, embedding_dim=8)
    assert run.rows[-1] == "fused"
    kept = json.loads((tmp_path / "run" / "model" / "fusion.json").read_text())
    linear, metrics = fit_ease(dataset.graph, kept["l2"]), run.evaluate("valid", baselines=False)
    assert not isinstance(linear, BaselineSkipped)
    users, items = run.embeddings("concatenation")
    expected = users @ items.T + 2 * kept["weight"] * linear.scores(np.arange(dataset.num_users)).numpy()
    table = run.recommend(dataset.user_ids[:1].tolist(), k=3, include_seen=True)
    best = np.sort(expected[0])[::-1][:3]
    np.testing.assert_allclose(table["score"].to_numpy(), best, atol=1e-3)
    assert metrics["fused"]["Recall@20"] >= metrics["concatenation"]["Recall@20"]
    with pytest.raises(InputError, match="that has embeddings"):
        run.embeddings("fused")


def test_a_run_without_it(dataset: Dataset, tmp_path: Path) -> None:
    run = gnnmr.fit(dataset, tmp_path / "run", epochs=1, global_batch_size=64, linear_peer=False)
    assert "fused" not in run.rows
    assert not (tmp_path / "run" / "model" / "fusion.json").exists()
    with pytest.raises(InputError, match=r"^row: expected one of"):
        run.recommend(dataset.user_ids[:1].tolist(), row="fused")


@pytest.mark.parametrize(
    "content", ["", "{}", '{"l2": 0, "weight": 1}', '{"l2": 1, "weight": NaN}', '{"l2": "x", "weight": 1}']
)
def test_a_damaged_file_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "fusion.json").write_text(content)
    with pytest.raises(InputError, match=r"fusion\.json: expected"):
        RunDirectory(str(tmp_path)).fusion()
