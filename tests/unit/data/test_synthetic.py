"""The planted data keep their promises: every part is needed, and the right answer is known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnmr_dist.data import synthetic
from gnnmr_dist.data.dataset import BagTable, CategoryTable, Dataset, DenseTable, open_dataset
from gnnmr_dist.data.synthetic import modality_names, synthetic_dataset
from gnnmr_dist.errors import InputError

K = 20


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    directory = tmp_path_factory.mktemp("planted") / "data"
    synthetic_dataset(directory, num_modalities=5)
    return open_dataset(directory)


def matrix(dataset: Dataset, split: str) -> np.ndarray:
    pairs = dataset.interactions(split)
    dense = np.zeros((dataset.num_users, dataset.num_items))
    dense[pairs.users, pairs.items] = 1
    return dense


def features(dataset: Dataset, name: str) -> np.ndarray:
    """Dense rows, or one column per code [I, dim]; zeros where missing."""
    table = dataset.features(name)
    if isinstance(table, DenseTable):
        return table.values.astype(float)
    rows = np.zeros((dataset.num_items, dataset.modality(name).dim))
    if isinstance(table, CategoryTable):
        rows[np.flatnonzero(table.present), table.codes[table.present]] = 1
    else:
        rows[np.repeat(np.arange(dataset.num_items), np.diff(table.offsets)), table.codes] = 1
    return rows


def recall(dataset: Dataset, scores: np.ndarray) -> float:
    test = matrix(dataset, "test")
    ranked = np.argsort(np.where(matrix(dataset, "train") > 0, np.inf, -scores), axis=1)[:, :K]
    hits, tested = np.take_along_axis(test, ranked, axis=1).sum(axis=1), test.sum(axis=1)
    return float(np.mean(hits[tested > 0] / tested[tested > 0]))


def popularity(dataset: Dataset) -> np.ndarray:
    return matrix(dataset, "train").sum(axis=0) / matrix(dataset, "train").sum() * dataset.num_items


def linear_probe(dataset: Dataset, rows: np.ndarray, ridge: float = 0.1) -> float:
    """Recall@20 of ridge regression from item features to each user's train interactions."""
    left, singular, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    kept = left * (singular**2 / (singular**2 + ridge * singular[0] ** 2))
    return recall(dataset, matrix(dataset, "train") @ kept @ left.T + 0.1 * popularity(dataset))


def test_the_promised_shapes(planted: Dataset) -> None:
    assert (planted.num_users, planted.num_items) == (600, 400)
    assert [(info.name, info.kind) for info in planted.modalities] == [
        ("text", "dense"), ("image", "dense"), ("audio", "dense"), ("category", "category"), ("m5", "bag"),
    ]  # fmt: skip
    rows = np.array([planted.manifest.splits[split] for split in ("train", "valid", "test")])
    assert rows.sum() == pytest.approx(600 * 20, rel=0.03)
    np.testing.assert_allclose(rows / rows.sum(), [0.79, 0.105, 0.105], atol=0.015)
    for info in planted.modalities:
        assert 0.04 * 400 < info.missing < 0.16 * 400
    assert planted.item_titles[3] == "Item 3"
    tags = planted.features("m5")
    assert isinstance(tags, BagTable)
    assert set(np.diff(tags.offsets)) == {0, synthetic.TAGS_PER_ITEM}


def test_cold_users_and_items_are_cold_and_no_others(planted: Dataset) -> None:
    train, rest = matrix(planted, "train"), matrix(planted, "valid") + matrix(planted, "test")
    assert not train[:5].any()
    assert rest[:5].any(axis=1).all()
    assert train[5:].any(axis=1).all()
    assert not train[:, :5].any()
    assert rest[:, :5].any()


def test_every_user_keeps_a_train_interaction_even_where_that_is_rare(tmp_path: Path) -> None:
    """With 3 interactions each and half of the items cold, chance alone would leave many users without."""
    synthetic_dataset(
        tmp_path / "data",
        num_users=200,
        num_items=64,
        interactions_per_user=3,
        cold_users=7,
        cold_items=32,
    )
    dataset = open_dataset(tmp_path / "data")
    np.testing.assert_array_equal(matrix(dataset, "train").any(axis=1), np.arange(200) >= 7)
    assert not matrix(dataset, "train")[:, :32].any()
    together = sum(matrix(dataset, split) for split in ("train", "valid", "test"))
    assert together[:, 32:].any(axis=1).all()


def test_every_modality_alone_is_worse_than_all_and_better_than_popularity(planted: Dataset) -> None:
    base = recall(planted, np.tile(popularity(planted), (planted.num_users, 1)))
    alone = {info.name: linear_probe(planted, features(planted, info.name)) for info in planted.modalities}
    together = linear_probe(planted, np.hstack([features(planted, name) for name in alone]))
    assert min(alone.values()) > base
    assert together > max(alone.values()) + 0.03
    assert together < planted.provenance["oracle"]["recall@20"]["all"]


def test_the_second_modality_is_the_weak_one(planted: Dataset) -> None:
    text, image, audio = (
        linear_probe(planted, features(planted, name)) for name in ("text", "image", "audio")
    )
    assert image < min(text, audio)


def test_features_reveal_their_own_block_only(planted: Dataset) -> None:
    """Share of a block's variance that a linear map from the present rows explains."""
    given = planted.provenance["arguments"]
    plan = synthetic.Plan(**{name: given[name] for name in synthetic.Plan.__dataclass_fields__})
    truth = synthetic._latents(plan)
    for m, info in enumerate(planted.modalities):
        present = planted.features(info.name).present
        rows = features(planted, info.name)[present]
        left, singular, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        left = left[:, singular > 1e-2 * singular[0]]
        explained = []
        for other in range(len(planted.modalities)):
            block = truth.items[present, other] - truth.items[present, other].mean(axis=0)
            explained.append(float(((left.T @ block) ** 2).sum() / (block**2).sum()))
        others = explained[:m] + explained[m + 1 :]
        assert explained[m] > max(others) + 0.2, info.name


def test_the_oracle_is_the_ranking_by_true_utility(planted: Dataset) -> None:
    oracle = planted.provenance["oracle"]["recall@20"]
    given = planted.provenance["arguments"]
    plan = synthetic.Plan(**{name: given[name] for name in synthetic.Plan.__dataclass_fields__})
    truth = synthetic._latents(plan)
    assert oracle["all"] == pytest.approx(recall(planted, truth.utility(slice(0, 600))), abs=1e-6)
    text = truth.utility(slice(0, 600), slice(0, 1))
    assert oracle["text"] == pytest.approx(recall(planted, text), abs=1e-6)
    singles = [oracle[name] for name in modality_names(5)]
    assert oracle["popularity"] < min(singles)
    assert max(singles) < oracle["all"] < 1


def test_users_take_what_they_like(planted: Dataset) -> None:
    """Without noise the interactions of a user are exactly the items of highest utility."""
    given = planted.provenance["arguments"]
    plan = synthetic.Plan(
        **{name: given[name] for name in synthetic.Plan.__dataclass_fields__} | {"noise": 0.0}
    )
    truth = synthetic._latents(plan)
    chosen, _ = synthetic._draw(plan, truth, slice(0, 50))
    utility = truth.utility(slice(0, 50))
    worst_taken = np.where(chosen, utility, np.inf).min(axis=1)
    best_left = np.where(chosen, -np.inf, utility).max(axis=1)
    warm_only = ~chosen[:, :5].any(axis=1)
    assert warm_only.sum() > 20
    assert (worst_taken > best_left)[warm_only].all()


def test_the_same_seed_gives_the_same_data(tmp_path: Path) -> None:
    small: dict[str, Any] = {"num_users": 40, "num_items": 64, "interactions_per_user": 8}
    one, two, other = (
        synthetic_dataset(tmp_path / name, seed=seed, **small)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert one == two != other
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_users_are_drawn_in_blocks(planted: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    given = planted.provenance["arguments"]
    plan = synthetic.Plan(**{name: given[name] for name in synthetic.Plan.__dataclass_fields__})
    monkeypatch.setattr(synthetic, "_SCORES", 100 * plan.num_items)
    assert [(rows.start, rows.stop) for rows in synthetic._row_blocks(plan)] == [
        (start, start + 100) for start in range(0, 600, 100)
    ]
    users, items, parts, oracle = synthetic._interactions(plan, synthetic._latents(plan))
    assert users.size == items.size == parts.size == pytest.approx(600 * 20, rel=0.03)
    assert np.all(np.diff(users) >= 0)
    assert oracle["users"] > 500


@pytest.mark.parametrize("num_modalities", [1, 2, 3, 4, 6])
def test_any_number_of_modalities(num_modalities: int, tmp_path: Path) -> None:
    synthetic_dataset(
        tmp_path / "data", num_modalities=num_modalities, num_users=40, num_items=64, interactions_per_user=8
    )
    names = [info.name for info in open_dataset(tmp_path / "data").modalities]
    assert names == modality_names(num_modalities)
    assert len(set(names)) == num_modalities
    assert ("category" in names) == (num_modalities > 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_modalities": 0}, r"expected num_modalities in 1..100, got 0"),
        ({"missing": 1.0}, r"expected missing in 0..0.9, got 1.0"),
        ({"noise": float("nan")}, r"expected noise in 0..1000000.0, got nan"),
        ({"interactions_per_user": 200}, r"expected interactions_per_user in 3..100, got 200"),
        ({"strength": [1.0, 1.0]}, r"expected 3 positive strengths, got \[1.0, 1.0\]"),
        ({"strength": [1.0, 0.0, 1.0]}, r"expected 3 positive strengths"),
    ],
)
def test_arguments_out_of_range_are_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        synthetic_dataset(tmp_path / "data", **change)
    assert os.listdir(tmp_path) == []
