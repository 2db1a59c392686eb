"""The data sets of a study: each set in its variants (own split, another split, rows of modalities dropped), made once.

A variant is a data set directory like any other, OUTPUT/sets/SET/VARIANT, beside a small file of what the report needs.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist import storage
from gnnmr_dist.data.dataset import Dataset, FeatureTable, open_dataset
from gnnmr_dist.data.feature_tables import BagTable, CategoryTable
from gnnmr_dist.data.format import SPLITS
from gnnmr_dist.data.recipe import Recipe, parse_recipe
from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.data.tables import open_source
from gnnmr_dist.data.writer import ModalityData, write_dataset
from gnnmr_dist.errors import InputError
from gnnmr_dist.prepare import prepare
from study.plan import DataSet, share_missing

RECIPES = Path(__file__).resolve().parents[1] / "datasets"
ACTIVITY = "activity.parquet"
"""Of a variant: users' original ids and their numbers of train interactions."""

# The shares of a split made anew are the paper's 8:1:1.
SPLIT: dict[str, dict[str, Any]] = {
    "random": {"method": "random"},
    "user-time": {"method": "user-time", "ratios": [0.8, 0.1, 0.1]},
    "global-time": {"method": "global-time", "ratios": [0.8, 0.1, 0.1]},
    "cold-items": {"method": "cold-items", "share": 0.2},
}


def ensure(found: DataSet, variant: str, source: Path | None, home: Path) -> Path:
    """The directory of a variant below ``home``, made unless it is there, with ACTIVITY beside it.

    Raises:
        InputError: the variant cannot be made of this set, or the raw files do not fit the recipe.
    """
    place = home / found.name / variant
    dataset = place / "data"
    if not (dataset / "manifest.json").exists():
        if (share := share_missing(variant)) is not None:
            own = open_dataset(ensure(found, "own", source, home), verify="structure")
            drop_rows(own, dataset, share)
        elif found.recipe is not None:
            prepare(recipe_of(found.recipe, variant), open_source(str(source)), str(dataset))
        elif variant == "own":
            synthetic_dataset(dataset, name=found.name, **found.synthetic)
        else:
            raise InputError(
                f"{found.name}: expected a set with a recipe for the split {variant}, got planted data"
            )
    if not (place / ACTIVITY).exists():
        _write_activity(open_dataset(dataset, verify="structure"), place / ACTIVITY)
    return dataset


def recipe_of(name: str, variant: str) -> Recipe:
    """A recipe of benchmarks/datasets (or at a path of its own), with the split of the variant."""
    file = RECIPES / name
    raw = tomllib.loads(file.read_text(encoding="utf-8"))
    if variant != "own":
        raw["split"] = SPLIT[variant]
    return parse_recipe(raw, file)


def drop_rows(dataset: Dataset, output: Path, share: float, seed: int = 0) -> None:
    """Write ``dataset`` again with a share of each modality's present rows missing, drawn independently per modality.

    One uniform number per row and modality decides for all shares, so what 10 % miss, 30 % miss too.
    """
    tables = {
        split: pq.read_table(dataset.directory / f"{split}.parquet", memory_map=False) for split in SPLITS
    }
    modalities = []
    for number, info in enumerate(dataset.modalities):
        table = dataset.features(info.name)
        drawn = np.random.default_rng([seed, number]).random(dataset.num_items)
        words = None if info.kind == "dense" else dataset.vocabulary(info.name)
        modalities.append(
            _kept(info.name, info.dim, table, np.asarray(table.present) & (drawn >= share), words)
        )
    write_dataset(
        output,
        name=dataset.name,
        users=pq.read_table(dataset.directory / "users.parquet"),
        items=pq.read_table(dataset.directory / "items.parquet"),
        splits=tables,
        modalities=modalities,
        provenance={"rows dropped": share, "seed": seed, "of": dataset.digest},
    )


def _kept(
    name: str, dim: int, table: FeatureTable, present: npt.NDArray[np.bool_], words: list[str] | None
) -> ModalityData:
    if isinstance(table, BagTable):
        lengths = np.diff(table.offsets)
        codes = table.codes[np.repeat(present, lengths)]
        offsets = np.concatenate([[0], np.cumsum(lengths * present)]).astype(np.int64)
        return ModalityData(name, "bag", dim, present, offsets=offsets, codes=codes, vocabulary=words)
    if isinstance(table, CategoryTable):
        codes = np.where(present, table.codes, np.int32(-1)).astype(np.int32)
        return ModalityData(name, "category", dim, present, codes, vocabulary=words)
    return ModalityData(
        name, "dense", dim, present, np.where(present[:, None], table.values, 0).astype(table.values.dtype)
    )


def _write_activity(dataset: Dataset, file: Path) -> None:
    degree = dataset.graph.degree()[: dataset.num_users].astype(np.int64)
    table = pa.table({"user": pa.array(dataset.user_ids), "train": degree})
    with storage.staged_file(str(file)) as staged:
        pq.write_table(table, str(staged))
