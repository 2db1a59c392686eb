"""From a recipe and a source to what ``write_dataset`` wants, all of it checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnmr_dist.data import splits
from gnnmr_dist.data.columns import first_row, id_column, number, plain, sorted_ids, unique_ids
from gnnmr_dist.data.features import Catalogue, item_columns, load_modality
from gnnmr_dist.data.filters import core, counts
from gnnmr_dist.data.raw import Columns, read_raw
from gnnmr_dist.data.recipe import (
    SPLITS,
    ColdItemsSplit,
    Entities,
    GlobalTimeSplit,
    RandomSplit,
    Recipe,
    UserTimeSplit,
)
from gnnmr_dist.data.scratch import Growing, blocks
from gnnmr_dist.data.sorting import in_order
from gnnmr_dist.data.tables import Source
from gnnmr_dist.data.writer import ModalityData
from gnnmr_dist.errors import bad_input
from gnnmr_dist.presets import RESERVED

IntArray = npt.NDArray[np.integer]


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
    """Read, check, filter, split and number the data a recipe describes.

    Items and users are numbered in the order of their table, or by ascending id without one. Interactions and dense
    features lie in scratch files; memory follows users and items.

    Raises:
        InputError: the data does not fit the recipe, or a filter or split leaves nothing.
        OSError: the disk for scratch files is full.
    """
    users, items, columns, rows = _read_ordered(recipe, source)
    columns = _filtered(recipe, columns, source)
    rows["kept"] = columns.size
    parts = _split(recipe, columns, source)
    kept_users = _renumber(users, columns.users)
    kept_items = _renumber(items, columns.items)
    file = source.label(recipe.items.file) if recipe.items else f"recipe {recipe.name}"
    catalogue = Catalogue(source, items.ids, kept_items, items.table, file)
    return Assembled(
        users=_entity_table(users, kept_users),
        items=_entity_table(items, kept_items),
        splits=_split_tables(columns, parts),
        modalities=_modalities(recipe, catalogue, source),
        rows=rows,
    )


def _read_ordered(recipe: Recipe, source: Source) -> tuple[Side, Side, Columns, dict[str, int]]:
    """Both sides, the interactions in order by the positions of their ids, each pair once, and the rows read."""
    raw = read_raw(recipe, source)
    section, file = recipe.interactions, source.label(recipe.interactions.file)
    users = _side(recipe.users, (), raw.user_ids, source)
    items = _side(recipe.items, item_columns(recipe.modality), raw.item_ids, source)
    columns, repeated = in_order(
        raw.columns,
        _positions(raw.user_ids, raw.columns.users, users, file, "user", source),
        _positions(raw.item_ids, raw.columns.items, items, file, "item", source),
        section.duplicates,
    )
    if section.duplicates == "error" and repeated is not None:
        expected = 'each user-item pair once (or duplicates = "first" or "last" in [interactions])'
        raise bad_input(file, expected, "a pair that stands in an earlier row", row=repeated)
    return users, items, columns, {"read": raw.columns.size}


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


def _positions(
    seen: pa.ChunkedArray, numbers: IntArray, side: Side, file: str, what: str, source: Source
) -> IntArray:
    """The position int32 among the side's ids of each id seen; ``numbers`` [n]: which of those each row has."""
    position = number(seen, side.ids)
    if side.recipe is not None and (first := first_row(position < 0)) is not None:
        hits = ((block.start, numbers[block] == first) for block in blocks(numbers.size))
        row = next(start + int(np.argmax(hit)) for start, hit in hits if hit.any())
        expected = f"{what} ids that stand in {source.label(side.recipe.file)}"
        raise bad_input(file, expected, f"unknown {what} {seen[first].as_py()!r}", row=row)
    return position.astype(np.int32)


def _filtered(recipe: Recipe, columns: Columns, source: Source) -> Columns:
    section, file = recipe.interactions, source.label(recipe.interactions.file)
    if not columns.size:
        raise bad_input(file, f"a row of weight {section.min_weight} or more", "none")
    per_user, per_item = recipe.filter.user_core, recipe.filter.item_core
    if max(per_user, per_item) > 1:
        columns = columns.keep(core(columns.users, columns.items, per_user, per_item))
        if not columns.size:
            expected = f"a core of {per_user} rows per user and {per_item} per item"
            raise bad_input(file, expected, "nothing left by the filter")
    return columns


def _split(recipe: Recipe, columns: Columns, source: Source) -> splits.Parts:
    file = source.label(recipe.interactions.file)
    parts = _split_parts(recipe, columns, file)
    sizes = np.zeros(len(SPLITS), np.int64)
    for block in blocks(parts.size):
        sizes += np.bincount(parts[block], minlength=len(SPLITS))
    for name, size in zip(SPLITS, sizes, strict=True):
        if size == 0:
            counted = ", ".join(f"{n} {s}" for n, s in zip(SPLITS, sizes, strict=True))
            expected = f"at least one {name} row by the {recipe.split.method} split"
            raise bad_input(file, expected, counted)
    return parts


def _split_parts(recipe: Recipe, columns: Columns, file: str) -> splits.Parts:
    split = recipe.split
    if isinstance(split, RandomSplit):
        return splits.random_split(columns.size, split.ratios, split.seed)
    if isinstance(split, ColdItemsSplit):
        return splits.cold_item_split(columns.items, split.share, split.seed)
    if isinstance(split, UserTimeSplit | GlobalTimeSplit):
        if columns.times is None:
            raise bad_input(file, f"timestamp in [interactions], for the {split.method} split", "none")
        return _time_parts(split, columns.users, columns.times)
    assert columns.parts is not None  # read with the table
    return columns.parts


def _time_parts(split: UserTimeSplit | GlobalTimeSplit, users: IntArray, times: IntArray) -> splits.Parts:
    if isinstance(split, GlobalTimeSplit):
        cuts = split.cuts or splits.global_time_cuts(times, split.ratios or (0.8, 0.1, 0.1))
        return splits.global_time_split(times, cuts)
    if split.leave is not None:
        return splits.leave_latest_split(users, times, split.leave)
    return splits.user_time_split(users, times, split.ratios or (0.8, 0.1, 0.1))


def _renumber(side: Side, numbers: IntArray) -> IntArray:
    """Positions of the ids kept in the data set; ``numbers``, positions among all, become those among the kept."""
    if side.recipe is not None and side.recipe.catalogue == "all":
        return np.arange(len(side.ids))
    kept = np.flatnonzero(counts(numbers))
    new = np.full(len(side.ids), -1, np.int32)
    new[kept] = np.arange(kept.size)
    for block in blocks(numbers.size):
        numbers[block] = new[numbers[block]]
    return kept


def _entity_table(side: Side, kept: IntArray) -> pa.Table:
    ids = side.ids.take(kept)
    columns = {"id": ids if pa.types.is_integer(ids.type) else ids.cast(pa.string())}
    if side.recipe is not None and side.table is not None:
        if side.recipe.title is not None:
            columns["title"] = plain(side.table, side.recipe.title).take(kept).cast(pa.string())
        for name in side.recipe.keep:
            columns[name] = side.table.column(name).take(kept)
    return pa.table(columns)


def _split_tables(columns: Columns, parts: splits.Parts) -> dict[str, pa.Table]:
    """The rows of each split, still in order."""
    names: dict[str, npt.NDArray[Any]] = {"user": columns.users, "item": columns.items}
    names |= {"timestamp": columns.times} if columns.times is not None else {}
    names |= {"weight": columns.weights} if columns.weights is not None else {}
    out = {split: {name: Growing(column.dtype) for name, column in names.items()} for split in SPLITS}
    for block in blocks(columns.size):
        for part, split in enumerate(SPLITS):
            rows = np.flatnonzero(parts[block] == part)
            for name, column in names.items():
                out[split][name].append(column[block][rows])
    return {
        split: pa.table({name: rows.array() for name, rows in table.items()}) for split, table in out.items()
    }


def _modalities(recipe: Recipe, catalogue: Catalogue, source: Source) -> list[ModalityData]:
    modalities = [data for entry in recipe.modality for data in load_modality(entry, catalogue)]
    seen: set[str] = set()
    for modality in modalities:
        if modality.name.casefold() in seen:
            raise bad_input(f"recipe {recipe.name}", "every modality named once", f"{modality.name!r} twice")
        if modality.name in RESERVED:
            expected = f"modality names other than {', '.join(RESERVED)}"
            raise bad_input(f"recipe {recipe.name}", expected, repr(modality.name))
        seen.add(modality.name.casefold())
    return modalities
