"""From a recipe and a source to what ``write_dataset`` wants, all of it checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnmr_dist.data import splits
from gnnmr_dist.data.features import Catalogue, item_columns, load_modality
from gnnmr_dist.data.filters import core, repeated_pairs
from gnnmr_dist.data.recipe import (
    SPLITS,
    ColdItemsSplit,
    ColumnSplit,
    Entities,
    GlobalTimeSplit,
    RandomSplit,
    Recipe,
    UserTimeSplit,
)
from gnnmr_dist.data.tables import (
    Source,
    first_row,
    float_column,
    id_column,
    number,
    plain,
    sorted_ids,
    time_column,
    unique_ids,
)
from gnnmr_dist.data.writer import ModalityData
from gnnmr_dist.errors import bad_input

IntArray = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Pairs:
    """Interactions: ``users``, ``items`` int64 [n] (positions among the ids) and the optional columns."""

    users: IntArray
    items: IntArray
    timestamps: IntArray | None
    weights: npt.NDArray[np.float64] | None
    parts: npt.NDArray[np.int8] | None

    def take(self, rows: npt.NDArray[Any]) -> Pairs:
        """The rows of a mask or of positions."""
        columns = (self.users, self.items, self.timestamps, self.weights, self.parts)
        return Pairs(*(None if column is None else column[rows] for column in columns))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Side:
    """Users or items: all known ids, and the rows of their table (None without one)."""

    ids: pa.ChunkedArray
    table: pa.Table | None
    recipe: Entities | None


@dataclass(frozen=True)
class Assembled:
    """Arguments of ``write_dataset``, and the number of rows each step left (for the summary)."""

    users: pa.Table
    items: pa.Table
    splits: dict[str, pa.Table]
    modalities: list[ModalityData]
    rows: dict[str, int]


def assemble(recipe: Recipe, source: Source) -> Assembled:
    """Read, check, filter, split and number the data a recipe describes; nothing is written.

    Items and users are numbered in the order of their table, or by ascending id without one.

    Raises:
        InputError: the data does not fit the recipe, or a filter or split leaves nothing.
    """
    users, items, pairs = _read_pairs(recipe, source)
    rows = {"read": pairs.users.size}
    pairs = _filtered(recipe, pairs, source)
    rows["kept"] = pairs.users.size
    pairs = pairs.take(np.lexsort((pairs.items, pairs.users)))
    parts = _split(recipe, pairs, source)
    kept_users, user_numbers = _renumbered(users, pairs.users)
    kept_items, item_numbers = _renumbered(items, pairs.items)
    pairs = Pairs(user_numbers, item_numbers, pairs.timestamps, pairs.weights, None)
    file = source.label(recipe.items.file) if recipe.items else f"recipe {recipe.name}"
    catalogue = Catalogue(source, items.ids, kept_items, items.table, file)
    return Assembled(
        users=_entity_table(users, kept_users),
        items=_entity_table(items, kept_items),
        splits={name: _split_table(pairs.take(parts == part)) for part, name in enumerate(SPLITS)},
        modalities=_modalities(recipe, catalogue, source),
        rows=rows,
    )


def _read_pairs(recipe: Recipe, source: Source) -> tuple[Side, Side, Pairs]:
    section = recipe.interactions
    by_column = recipe.split if isinstance(recipe.split, ColumnSplit) else None
    extra = [section.timestamp, section.weight, by_column.column if by_column else None]
    table = source.table(section.file, [section.user, section.item, *filter(None, extra)])
    file = source.label(section.file)
    user_ids, item_ids = id_column(table, file, section.user), id_column(table, file, section.item)
    users = _side(recipe.users, (), user_ids, source)
    items = _side(recipe.items, item_columns(recipe.modality), item_ids, source)
    pairs = Pairs(
        _numbered(user_ids, users, file, "user", source),
        _numbered(item_ids, items, file, "item", source),
        time_column(table, file, section.timestamp) if section.timestamp else None,
        float_column(table, file, section.weight) if section.weight else None,
        _parts(table, file, by_column) if by_column else None,
    )
    return users, items, pairs


def _side(entities: Entities | None, columns: Sequence[str], seen: pa.ChunkedArray, source: Source) -> Side:
    if entities is None:
        return Side(sorted_ids(seen), None, None)
    file = source.label(entities.file)
    wanted = [*filter(None, (entities.id, entities.title)), *entities.keep, *columns]
    table = source.table(entities.file, wanted)
    if entities.id is None:
        return Side(pa.chunked_array([pa.array(np.arange(table.num_rows))]), table, entities)
    ids = id_column(table, file, entities.id)
    unique_ids(ids, file, entities.id)
    return Side(ids, table, entities)


def _numbered(ids: pa.ChunkedArray, side: Side, file: str, what: str, source: Source) -> IntArray:
    position = number(ids, side.ids)
    if side.recipe is not None and (row := first_row(position < 0)) is not None:
        expected = f"{what} ids that stand in {source.label(side.recipe.file)}"
        raise bad_input(file, expected, f"unknown {what} {ids[row].as_py()!r}", row=row)
    return position


def _parts(table: pa.Table, file: str, split: ColumnSplit) -> npt.NDArray[np.int8]:
    column = plain(table, split.column)
    if (row := first_row(column.is_null())) is not None:
        raise bad_input(file, f"a split in column {split.column!r}", "null", row=row)
    values = column.cast(pa.large_string())
    names = [str(split.train), str(split.valid), str(split.test)]
    part = pc.index_in(values, value_set=pa.array(names, pa.large_string()))
    if (row := first_row(part.is_null())) is not None:
        expected = f"{names[0]}, {names[1]} or {names[2]} in column {split.column!r}"
        raise bad_input(file, expected, repr(values[row].as_py()), row=row)
    return np.asarray(part.to_numpy(), np.int8)


def _filtered(recipe: Recipe, pairs: Pairs, source: Source) -> Pairs:
    section, file = recipe.interactions, source.label(recipe.interactions.file)
    repeated = repeated_pairs(pairs.users, pairs.items, "last" if section.duplicates == "last" else "first")
    if section.duplicates == "error" and (row := first_row(repeated)) is not None:
        expected = 'each user-item pair once (or duplicates = "first" or "last" in [interactions])'
        raise bad_input(file, expected, "a pair that stands in an earlier row", row=row)
    pairs = pairs.take(~repeated) if repeated.any() else pairs
    if section.min_weight is not None and pairs.weights is not None:
        pairs = pairs.take(pairs.weights >= section.min_weight)
        if not pairs.users.size:
            raise bad_input(file, f"a row of weight {section.min_weight} or more", "none")
    per_user, per_item = recipe.filter.user_core, recipe.filter.item_core
    if max(per_user, per_item) > 1:
        pairs = pairs.take(core(pairs.users, pairs.items, per_user, per_item))
        if not pairs.users.size:
            expected = f"a core of {per_user} rows per user and {per_item} per item"
            raise bad_input(file, expected, "nothing left by the filter")
    return pairs


def _split(recipe: Recipe, pairs: Pairs, source: Source) -> npt.NDArray[np.int8]:
    file = source.label(recipe.interactions.file)
    parts = _split_parts(recipe, pairs, file)
    sizes = np.bincount(parts, minlength=len(SPLITS))
    for name, size in zip(SPLITS, sizes, strict=True):
        if size == 0:
            counted = ", ".join(f"{n} {s}" for n, s in zip(SPLITS, sizes, strict=True))
            expected = f"at least one {name} row by the {recipe.split.method} split"
            raise bad_input(file, expected, counted)
    return parts


def _split_parts(recipe: Recipe, pairs: Pairs, file: str) -> npt.NDArray[np.int8]:
    split = recipe.split
    if isinstance(split, RandomSplit):
        return splits.random_split(pairs.users.size, split.ratios, split.seed)
    if isinstance(split, ColdItemsSplit):
        return splits.cold_item_split(pairs.items, split.share, split.seed)
    if isinstance(split, UserTimeSplit | GlobalTimeSplit):
        if pairs.timestamps is None:
            raise bad_input(file, f"timestamp in [interactions], for the {split.method} split", "none")
        return _time_parts(split, pairs.users, pairs.timestamps)
    assert pairs.parts is not None  # read with the table
    return pairs.parts


def _time_parts(
    split: UserTimeSplit | GlobalTimeSplit, users: IntArray, times: IntArray
) -> npt.NDArray[np.int8]:
    if isinstance(split, GlobalTimeSplit):
        cuts = split.cuts or splits.global_time_cuts(times, split.ratios or (0.8, 0.1, 0.1))
        return splits.global_time_split(times, cuts)
    if split.leave is not None:
        return splits.leave_latest_split(users, times, split.leave)
    return splits.user_time_split(users, times, split.ratios or (0.8, 0.1, 0.1))


def _renumbered(side: Side, numbers: IntArray) -> tuple[IntArray, IntArray]:
    """Positions of the ids kept in the data set, and ``numbers`` (positions among all) renumbered."""
    everything = side.recipe is not None and side.recipe.catalogue == "all"
    kept = np.arange(len(side.ids)) if everything else np.unique(numbers)
    new = np.full(len(side.ids), -1, np.int64)
    new[kept] = np.arange(kept.size)
    return kept, new[numbers]


def _entity_table(side: Side, kept: IntArray) -> pa.Table:
    ids = side.ids.take(kept)
    columns = {"id": ids if pa.types.is_integer(ids.type) else ids.cast(pa.string())}
    if side.recipe is not None and side.table is not None:
        if side.recipe.title is not None:
            columns["title"] = plain(side.table, side.recipe.title).take(kept).cast(pa.string())
        for name in side.recipe.keep:
            columns[name] = side.table.column(name).take(kept)
    return pa.table(columns)


def _split_table(pairs: Pairs) -> pa.Table:
    columns: dict[str, IntArray | npt.NDArray[np.float32]]
    columns = {"user": pairs.users.astype(np.int32), "item": pairs.items.astype(np.int32)}
    if pairs.timestamps is not None:
        columns["timestamp"] = pairs.timestamps
    if pairs.weights is not None:
        columns["weight"] = pairs.weights.astype(np.float32)
    return pa.table(columns)


def _modalities(recipe: Recipe, catalogue: Catalogue, source: Source) -> list[ModalityData]:
    modalities = [data for entry in recipe.modality for data in load_modality(entry, catalogue)]
    seen: set[str] = set()
    for modality in modalities:
        if modality.name.casefold() in seen:
            raise bad_input(f"recipe {recipe.name}", "every modality named once", f"{modality.name!r} twice")
        seen.add(modality.name.casefold())
    return modalities
