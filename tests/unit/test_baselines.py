"""Baselines against closed forms by hand, and against the reference points of the real data sets."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch

from gnnmr_dist.baselines import fit_item_knn, fit_popularity
from gnnmr_dist.closed_form import choose, value_on
from gnnmr_dist.data.dataset import Interactions
from gnnmr_dist.data.graph import Graph, build_graph
from gnnmr_dist.ease import BaselineSkipped, ItemWeightScorer, NewItemScorer, RowWeightScorer, fit_ease
from gnnmr_dist.evaluation import Relevant, relevant_items
from gnnmr_dist.ranking import Scorer


def graph_of(matrix: np.ndarray) -> Graph:
    users, items = np.nonzero(matrix)
    return build_graph(users, items, *matrix.shape)


def random_matrix(num_users: int, num_items: int, seed: int = 1) -> np.ndarray:
    matrix = (np.random.default_rng(seed).random((num_users, num_items)) < 0.3).astype(np.float64)
    matrix[0] = 0.0  # a user and an item without train interactions
    matrix[:, 0] = 0.0
    return matrix


def all_scores(scorer: Scorer, num_users: int) -> np.ndarray:
    scores = scorer.scores(np.arange(num_users))
    assert scores.dtype == torch.float32
    return scores.double().numpy()


def fitted(scorer: Scorer | BaselineSkipped) -> Scorer:
    assert not isinstance(scorer, BaselineSkipped), scorer.reason
    return scorer


SMALL = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]], np.float64)
SMALL_POPULARITY = 1e-6 * np.array([3.0, 2.0, 1.0])


def test_popularity_by_hand() -> None:
    scores = fit_popularity(graph_of(SMALL)).scores(np.array([3, 0]))
    np.testing.assert_allclose(scores, np.tile(SMALL_POPULARITY, (2, 1)), rtol=1e-6)
    scores[0] = -1.0
    assert scores[1, 0] > 0  # rows are not views of one another


def test_item_knn_by_hand() -> None:
    scorer = fitted(fit_item_knn(graph_of(SMALL)))
    c01, c02, c12 = 2 / np.sqrt(6), 1 / np.sqrt(3), 0.0
    weights = np.array([[0, c01, c02], [c01, 0, c12], [c02, c12, 0]])
    np.testing.assert_allclose(all_scores(scorer, 4), SMALL @ weights + SMALL_POPULARITY, atol=1e-6)
    one = fitted(fit_item_knn(graph_of(SMALL), neighbours=1))
    weights[2, 0] = 0  # item 0 keeps its nearest, item 1
    np.testing.assert_allclose(all_scores(one, 4), SMALL @ weights + SMALL_POPULARITY, atol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        fit_item_knn(graph_of(SMALL), neighbours=0)


def test_ease_by_hand() -> None:
    """Two items, Gram [[2, 1], [1, 2]], l2 = 1: P = [[3, -1], [-1, 3]] / 8, so B = [[0, 1/3], [1/3, 0]]."""
    matrix = np.array([[1, 1], [1, 0], [0, 1]], np.float64)
    scores = all_scores(fitted(fit_ease(graph_of(matrix), 1.0)), 3)
    expected = matrix @ np.array([[0, 1 / 3], [1 / 3, 0]]) + 2e-6
    np.testing.assert_allclose(scores, expected, atol=1e-7)


@pytest.mark.parametrize("l2", [0.5, 10.0])
def test_ease_meets_its_optimality_conditions(l2: float) -> None:
    """Zero diagonal, and the gradient X^T (X B - X) + l2 B vanishes off the diagonal (KKT)."""
    matrix = random_matrix(30, 12)
    scorer = fit_ease(graph_of(matrix), l2)
    assert isinstance(scorer, ItemWeightScorer)
    b = scorer.weights.astype(np.float64)
    assert (np.diag(b) == 0).all()
    gradient = matrix.T @ (matrix @ b - matrix) + l2 * b
    off_diagonal = gradient[~np.eye(12, dtype=bool)]
    assert np.abs(off_diagonal).max() < 1e-5
    assert np.abs(np.diag(gradient)).max() > 0.1  # the multipliers of the constraint


@pytest.mark.parametrize("l2", [0.5, 10.0])
def test_ease_through_users_equals_the_closed_form(l2: float) -> None:
    matrix = random_matrix(12, 30)
    scorer = fit_ease(graph_of(matrix), l2)
    assert isinstance(scorer, RowWeightScorer)
    inverse = np.linalg.inv(matrix.T @ matrix + l2 * np.eye(30))
    b = np.eye(30) - inverse / np.diag(inverse)
    expected = matrix @ b + 1e-6 * matrix.sum(axis=0)
    np.testing.assert_allclose(all_scores(scorer, 12), expected, atol=2e-6)


def test_of_equal_neighbours_the_smaller_item_numbers_stay() -> None:
    """Against a stable sort of every column; few users, so many cosines are equal."""
    matrix = random_matrix(5, 40)
    graph = graph_of(matrix)
    every = fit_item_knn(graph)
    assert isinstance(every, ItemWeightScorer)
    for neighbours in (1, 3, 20, 39):
        expected = every.weights.copy()
        dropped = np.argsort(-expected, axis=0, kind="stable")[neighbours:]
        np.put_along_axis(expected, dropped, 0.0, axis=0)
        few = fit_item_knn(graph, neighbours=neighbours)
        assert isinstance(few, ItemWeightScorer)
        np.testing.assert_array_equal(few.weights, expected)
        assert ((few.weights > 0).sum(axis=0) <= neighbours).all()


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
@pytest.mark.parametrize("powers", [(0.5, 0.2), (1.0, 0.0), (0.0, 0.4)])
def test_normalised_ease_equals_its_definition(shape: tuple[int, int], powers: tuple[float, float]) -> None:
    """Through items and through users alike: EASE of Y = D_u^(-p/2) X D_i^-q, its weights scaled back."""
    matrix, l2 = random_matrix(*shape), 3.0
    users, items = (np.maximum(matrix.sum(axis=axis), 1) for axis in (1, 0))
    scaled = matrix / users[:, None] ** (powers[0] / 2) / items ** powers[1]
    inverse = np.linalg.inv(
        scaled.T @ scaled + l2 * (scaled**2).sum() / matrix.sum() * np.eye(matrix.shape[1])
    )
    solution = np.eye(matrix.shape[1]) - inverse / np.diag(inverse)
    weights = solution * items ** powers[1] / items[:, None] ** powers[1]
    scorer = fitted(fit_ease(graph_of(matrix), l2, user_power=powers[0], item_power=powers[1]))
    expected = matrix @ weights + 1e-6 * matrix.sum(axis=0)
    np.testing.assert_allclose(all_scores(scorer, shape[0]), expected, atol=5e-6)


@pytest.mark.parametrize("shape", [(30, 12), (5, 30)])
@pytest.mark.parametrize("powers", [(0.0, 0.0), (0.5, 0.2)])
def test_features_are_more_users_of_their_own_weight(
    shape: tuple[int, int], powers: tuple[float, float]
) -> None:
    """Through items and through rows alike: the solution for [Y; sqrt(w l2) F^T D_i^-q], read with X alone."""
    matrix, l2, weight = random_matrix(*shape), 3.0, 0.4
    features = np.random.default_rng(2).random((shape[1], 4)) * (np.arange(shape[1])[:, None] % 3 > 0)
    users, items = (np.maximum(matrix.sum(axis=axis), 1) for axis in (1, 0))
    scaled = matrix / users[:, None] ** (powers[0] / 2) / items ** powers[1]
    l2_scaled = l2 * (scaled**2).sum() / matrix.sum()
    more = np.sqrt(weight * l2_scaled) * features.T / items ** powers[1]
    inverse = np.linalg.inv(scaled.T @ scaled + more.T @ more + l2_scaled * np.eye(shape[1]))
    solution = np.eye(shape[1]) - inverse / np.diag(inverse)
    expected = matrix @ (solution * items ** powers[1] / items[:, None] ** powers[1]) + 1e-6 * matrix.sum(
        axis=0
    )
    scorer = fit_ease(
        graph_of(matrix),
        l2,
        user_power=powers[0],
        item_power=powers[1],
        features=sp.csr_matrix(features.astype(np.float32)),
        feature_weight=weight,
    )
    assert isinstance(scorer, ItemWeightScorer if shape == (30, 12) else RowWeightScorer)
    np.testing.assert_allclose(all_scores(scorer, shape[0]), expected, atol=5e-6)
    plain = fitted(fit_ease(graph_of(matrix), l2, user_power=powers[0], item_power=powers[1]))
    assert np.abs(all_scores(plain, shape[0]) - expected).max() > 1e-3


def test_an_item_without_train_interactions_is_scored_by_its_features() -> None:
    """Item 0 has none (random_matrix); it has the features of item 3."""
    matrix = random_matrix(30, 12)
    features = sp.csr_matrix(np.eye(12, dtype=np.float32)[[3, *range(1, 12)]])
    scores = all_scores(fitted(fit_ease(graph_of(matrix), 1.0, features=features, feature_weight=5.0)), 30)
    assert (scores[matrix[:, 3] > 0, 0] > 0.1).all()
    plain = all_scores(fitted(fit_ease(graph_of(matrix), 1.0)), 30)
    assert (plain[:, 0] == 0).all()


@pytest.mark.parametrize("shape", [(30, 12), (5, 30)])
@pytest.mark.parametrize("powers", [(0.0, 0.0), (0.5, 0.2)])
def test_a_new_item_has_the_scores_of_one_that_was_fitted_without_interactions(
    shape: tuple[int, int], powers: tuple[float, float]
) -> None:
    """Through items and through rows alike, with item 0 the only one that nobody has."""
    matrix, num_items = random_matrix(*shape), shape[1]
    matrix[1, 1:] = 1.0
    dense = np.random.default_rng(3).random((num_items, 4)).astype(np.float32)
    options = {"user_power": powers[0], "item_power": powers[1], "feature_weight": 0.7}
    whole = all_scores(
        fitted(fit_ease(graph_of(matrix), 2.0, features=sp.csr_matrix(dense), **options)), shape[0]
    )
    known = fit_ease(graph_of(matrix[:, 1:]), 2.0, features=sp.csr_matrix(dense[1:]), **options)
    assert isinstance(known, ItemWeightScorer if shape == (30, 12) else RowWeightScorer)
    scores = all_scores(NewItemScorer(known, dense[1:] @ dense[:1].T), shape[0])
    np.testing.assert_array_equal(scores[:, :-1], all_scores(known, shape[0]))
    np.testing.assert_allclose(scores[:, -1], whole[:, 0], atol=2e-6)
    assert np.abs(scores[1:, -1]).max() > 0.01


def test_features_and_their_weight_come_together() -> None:
    graph, features = graph_of(random_matrix(30, 12)), sp.csr_matrix((12, 2), dtype=np.float32)
    for some, weight in ((None, 1.0), (features, 0.0), (features, -1.0)):
        with pytest.raises(ValueError, match="features"):
            fit_ease(graph, 1.0, features=some, feature_weight=weight)
    with pytest.raises(ValueError, match="l2"):
        fit_ease(graph, 0.0)


def test_a_user_without_train_interactions_gets_popularity() -> None:
    for shape in ((30, 12), (12, 30)):
        matrix = random_matrix(*shape)
        graph = graph_of(matrix)
        for scorer in (fit_item_knn(graph), fit_ease(graph, 1.0), fit_popularity(graph)):
            scores = all_scores(fitted(scorer), shape[0])
            np.testing.assert_allclose(scores[0], 1e-6 * matrix.sum(axis=0), rtol=1e-6)


def test_what_does_not_fit_in_memory_is_skipped_with_a_reason() -> None:
    graph = graph_of(random_matrix(30, 12))
    for skipped in (
        fit_ease(graph, 1.0, memory_limit=24 * 12**2 - 1),
        fit_item_knn(graph, memory_limit=4 * 12**2 - 1),
    ):
        assert isinstance(skipped, BaselineSkipped)
        assert "12 x 12" in skipped.reason
    assert not isinstance(fit_ease(graph, 1.0, memory_limit=24 * 12**2), BaselineSkipped)
    more = {"features": sp.csr_matrix(np.ones((12, 5), np.float32)), "feature_weight": 1.0}
    needed = 24 * 12**2 + 60 * 12 * 5
    skipped = fit_ease(graph, 1.0, **more, memory_limit=needed - 1)
    assert isinstance(skipped, BaselineSkipped)
    assert "5 feature columns" in skipped.reason
    assert not isinstance(fit_ease(graph, 1.0, **more, memory_limit=needed), BaselineSkipped)
    assert not isinstance(fit_item_knn(graph, memory_limit=4 * 12**2), BaselineSkipped)


@dataclass(frozen=True)
class Reference:
    """Test Recall@20 and NDCG@20 of the reference points, and what ties at equal scores leave open."""

    name: str
    popularity: tuple[float, float]
    item_knn: tuple[float, float]
    ease: tuple[float, float]
    l2: float
    tolerance: float


# Many of the funds' items have identical train columns, so equal scores. The reference ranks those in an order it
# leaves open; larger instead of smaller item numbers first moves item-kNN's NDCG by .0034. Hence .002 there.
REFERENCES = [
    Reference(
        "se_funds_2022q4",
        (0.1359, 0.1290),
        (0.2085, 0.1971),
        (0.3873, 0.3588),
        30.0,
        0.002,
    ),
    Reference(
        "ml100k",
        (0.1395, 0.2156),
        (0.1810, 0.2666),
        (0.2113, 0.3030),
        1000.0,
        0.0005,
    ),
    Reference(
        "steam200k",
        (0.3481, 0.2215),
        (0.4587, 0.3608),
        (0.5714, 0.4463),
        100.0,
        0.0005,
    ),
]


def load(folder: Path) -> tuple[Graph, Relevant, Relevant]:
    table = pq.read_table(folder / "interactions.parquet", columns=["user", "item", "split"])
    users, items = table["user"].to_numpy(), table["item"].to_numpy()
    split = np.array(table["split"].to_pylist())
    num_users = int(users.max()) + 1
    num_items = pq.read_metadata(folder / "items.parquet").num_rows
    train, valid, test = (split == name for name in ("train", "valid", "test"))
    graph = build_graph(users[train], items[train], num_users, num_items)
    return (
        graph,
        relevant_items(Interactions(users[valid], items[valid], None, None), num_users),
        relevant_items(Interactions(users[test], items[test], None, None), num_users),
    )


@pytest.mark.parametrize(
    "reference",
    [
        pytest.param(r, id=r.name, marks=[pytest.mark.slow] if r.name == "steam200k" else [])
        for r in REFERENCES
    ],
)
def test_reference_points(reference: Reference, data_root: Path) -> None:
    """Their item-kNN has all neighbours, whatever validation would choose."""
    graph, valid, test = load(data_root / reference.name)
    chosen = choose("ease", graph, valid, (10.0, 30.0, 100.0, 300.0, 1000.0))  # those of the reference points
    assert not isinstance(chosen, BaselineSkipped)
    ease, l2 = chosen
    assert l2 == reference.l2
    for scorer, expected in (
        (fit_popularity(graph), reference.popularity),
        (fitted(fit_item_knn(graph)), reference.item_knn),
        (ease, reference.ease),
    ):
        assert tuple(
            value_on(test, scorer, graph, f"{name}@20") for name in ("Recall", "NDCG")
        ) == pytest.approx(expected, abs=reference.tolerance)
