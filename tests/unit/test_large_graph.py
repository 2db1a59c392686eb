"""The generator of large data sets (benchmarks/large_graph.py): valid, as large as asked for, the same again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.errors import InputError


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "large_graph.py"
    spec = importlib.util.spec_from_file_location("large_graph", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["large_graph"] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_valid_skewed_and_the_same_again(generator: ModuleType, tmp_path: Path) -> None:
    digest = generator.large_dataset(tmp_path / "one", edges=20_000, users=500, items=400, dims=(5, 3))
    assert (
        generator.large_dataset(tmp_path / "two", edges=20_000, users=500, items=400, dims=(5, 3)) == digest
    )
    data = open_dataset(tmp_path / "one")  # checks every value: no pair twice, splits disjoint, graph right
    assert data.manifest.splits == {"train": 20_000, "valid": 500, "test": 500}
    degree = data.graph.degree()
    assert degree[:500].min() >= 1
    assert degree[:500].std() > 0.5 * degree[:500].mean()
    popular = np.sort(degree[500:])[::-1]
    assert (
        popular[:40].sum() > 2.5 * popular.sum() / 10
    )  # a tenth of the items has more than a quarter of the pairs
    assert [m.dim for m in data.modalities] == [5, 3]
    assert 0 < data.modalities[0].missing < 60


def test_seeds_differ(generator: ModuleType, tmp_path: Path) -> None:
    options = {"edges": 1000, "users": 100, "items": 200, "dims": (2,)}
    digests = [generator.large_dataset(tmp_path / str(seed), seed=seed, **options) for seed in (0, 1)]
    assert digests[0] != digests[1]


def test_dense_rows_are_filled_without_repeats(generator: ModuleType, tmp_path: Path) -> None:
    generator.large_dataset(tmp_path / "data", edges=50 * 20, users=20, items=200, dims=(2,))
    assert open_dataset(tmp_path / "data").graph.num_edges == 1000


@pytest.mark.parametrize("edges", [9, 10 * 50 + 1])
def test_impossible_sizes_are_refused(generator: ModuleType, tmp_path: Path, edges: int) -> None:
    with pytest.raises(InputError, match="--edges: expected 10 to 500"):
        generator.large_dataset(tmp_path / "data", edges=edges, users=10, items=200)
