"""Variants of data sets: dropped rows are dropped and nothing else, splits are made anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_files import write_source
from study import datasets
from study.plan import DataSet

from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.data.feature_tables import BagTable, CategoryTable
from gnnmr_dist.errors import InputError

PLANTED = DataSet("planted", None, {"num_users": 60, "num_items": 80, "num_modalities": 5}, 1.0, 3, None, {})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    """Own, 30 % and 90 % of the rows of every modality dropped."""
    home = tmp_path_factory.mktemp("sets")
    variants = ("own", "missing-30", "missing-90")
    return [open_dataset(datasets.ensure(PLANTED, variant, None, home)) for variant in variants]


def test_more_is_missing_step_by_step_and_what_stays_is_the_same(sets: list[Dataset]) -> None:
    own, _, most = sets
    for info in own.modalities:
        a, b, c = (data.features(info.name) for data in sets)
        assert not (b.present & ~a.present).any()
        assert not (c.present & ~b.present).any()  # what 30 % miss, 90 % miss too
        assert abs(b.present.sum() / a.present.sum() - 0.7) < 0.2
        assert abs(c.present.sum() / a.present.sum() - 0.1) < 0.15
        if isinstance(a, BagTable):
            assert isinstance(b, BagTable)
            for item in np.flatnonzero(b.present):
                one, two = (t.codes[t.offsets[item] : t.offsets[item + 1]].tolist() for t in (a, b))
                assert one == two
        elif isinstance(a, CategoryTable):
            assert isinstance(b, CategoryTable)
            assert np.array_equal(a.codes[b.present], b.codes[b.present])
        else:
            assert np.array_equal(a.values[b.present], b.values[b.present])
    assert len({data.digest for data in sets}) == 3
    for split in ("train", "valid", "test"):
        assert np.array_equal(own.interactions(split).items, most.interactions(split).items)


def test_modalities_lose_different_rows(sets: list[Dataset]) -> None:
    own, some, _ = sets
    lost = [own.features(m.name).present & ~some.features(m.name).present for m in own.modalities]
    assert not np.array_equal(lost[0], lost[1])


def test_a_variant_is_made_once_beside_its_users_activity(tmp_path: Path) -> None:
    first = datasets.ensure(PLANTED, "own", None, tmp_path)
    stamp = (first / "manifest.json").stat().st_mtime_ns
    assert datasets.ensure(PLANTED, "own", None, tmp_path) == first
    assert (first / "manifest.json").stat().st_mtime_ns == stamp
    table = pq.read_table(first.parent / datasets.ACTIVITY)
    data = open_dataset(first)
    assert table["user"].to_pylist() == data.user_ids.tolist()
    assert sum(table["train"].to_pylist()) == data.manifest.splits["train"]


def test_planted_data_has_one_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a set with a recipe for the split cold-items"):
        datasets.ensure(PLANTED, "cold-items", None, tmp_path)


def test_a_recipe_with_another_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path)
    monkeypatch.setattr(datasets, "RECIPES", tmp_path)
    monkeypatch.setitem(datasets.SPLIT, "cold-items", {"method": "cold-items", "share": 0.4})  # of five items
    found, source = DataSet("small", "recipe.toml", {}, 1.0, 3, None, {}), tmp_path / "source"
    own, cold = (
        open_dataset(datasets.ensure(found, variant, source, tmp_path / "sets"))
        for variant in ("own", "cold-items")
    )
    held = set(cold.interactions("test").items.tolist())
    assert held
    assert not held & set(cold.interactions("train").items.tolist())
    assert sum(own.manifest.splits.values()) == sum(cold.manifest.splits.values())
