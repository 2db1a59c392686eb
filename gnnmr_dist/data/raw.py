"""The raw interactions of a recipe, read batch by batch into columns on scratch files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnmr_dist.data.ahead import read_ahead
from gnnmr_dist.data.columns import first_row, float_column, id_values, plain, time_column
from gnnmr_dist.data.numbering import Numbering
from gnnmr_dist.data.recipe import ColumnSplit, Recipe
from gnnmr_dist.data.scratch import Growing, blocks
from gnnmr_dist.data.tables import Source
from gnnmr_dist.data.text_tables import FROM_TEXT
from gnnmr_dist.errors import bad_input


@dataclass(frozen=True)
class Columns:
    """n interactions: ``users`` and ``items`` int32 [n], and what is known of each.

    ``times`` int64, ``weights`` float32, ``parts`` int8 (0 train, 1 valid, 2 test), ``enough`` bool (whether the weight
    reaches ``min_weight``): [n], or None where the recipe does not speak of them.
    """

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    times: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None
    parts: npt.NDArray[np.int8] | None = None
    enough: npt.NDArray[np.bool_] | None = None

    @property
    def size(self) -> int:
        """n."""
        return int(self.users.size)

    def present(self) -> list[npt.NDArray[Any]]:
        """The columns that are there."""
        return [column for f in fields(self) if (column := getattr(self, f.name)) is not None]

    def each(self, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Columns:
        """Every column that is there, changed."""
        old: list[Any] = [getattr(self, f.name) for f in fields(self)]
        new: list[Any] = [column if column is None else change(column) for column in old]
        return Columns(*new)

    def keep(self, mask: npt.NDArray[np.bool_]) -> Columns:
        """The rows of a mask [n], moved together in place."""
        return self.each(lambda column: _compacted(column, mask))


def _compacted(column: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    end = 0
    for block in blocks(column.size):
        kept = column[block][mask[block]]
        column[end : end + kept.size] = kept
        end += kept.size
    return column[:end]


@dataclass(frozen=True)
class Raw:
    """The interactions as the file has them, users and items by the numbers of the ids in order of appearance."""

    columns: Columns
    user_ids: pa.ChunkedArray
    item_ids: pa.ChunkedArray


def read_raw(recipe: Recipe, source: Source) -> Raw:
    """Read the table of interactions in one pass.

    Raises:
        InputError: a column is missing, or a value is null or not of its kind (row named).
        OSError: the disk for scratch files is full.
    """
    section, file = recipe.interactions, source.label(recipe.interactions.file)
    by_column = recipe.split if isinstance(recipe.split, ColumnSplit) else None
    extra = [section.timestamp, section.weight, by_column.column if by_column else None]
    users, items = Numbering(), Numbering()
    out = {"users": Growing(np.int32), "items": Growing(np.int32)}
    out |= {"times": Growing(np.int64)} if section.timestamp else {}
    out |= {"weights": Growing(np.float32)} if section.weight else {}
    out |= {"enough": Growing(np.bool_)} if section.min_weight is not None else {}
    out |= {"parts": Growing(np.int8)} if by_column else {}
    names = [section.user, section.item, *filter(None, extra)]
    batches = _numbered(source.batches(section.file, names), items, section.item, file)
    for table, item_codes in read_ahead(batches):
        rows = range(out["users"].size, out["users"].size + table.num_rows)
        user_ids = id_values(table, file, section.user, rows)
        out["users"].append(users.add(user_ids, from_text=table.schema.metadata == FROM_TEXT))
        out["items"].append(item_codes)
        if section.timestamp:
            out["times"].append(time_column(table, file, section.timestamp, rows))
        if section.weight:
            weights = float_column(table, file, section.weight, rows)
            with np.errstate(over="ignore"):  # an infinite float32 is told when the data set is checked
                out["weights"].append(weights.astype(np.float32))
            if section.min_weight is not None:
                out["enough"].append(weights >= section.min_weight)
        if by_column:
            out["parts"].append(_parts(table, file, by_column, rows))
    return Raw(Columns(**{name: column.array() for name, column in out.items()}), users.ids(), items.ids())


def _numbered(
    batches: Iterator[pa.Table], numbering: Numbering, name: str, file: str
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int32]]]:
    """Every batch and the numbers of one of its columns of ids."""
    first = 0
    for table in batches:
        ids = id_values(table, file, name, range(first, first + table.num_rows))
        first += table.num_rows
        yield table, numbering.add(ids, from_text=table.schema.metadata == FROM_TEXT)


def _parts(table: pa.Table, file: str, split: ColumnSplit, rows: range) -> npt.NDArray[np.int8]:
    column = plain(table, split.column)
    if (row := first_row(column.is_null())) is not None:
        raise bad_input(file, f"a split in column {split.column!r}", "null", row=rows[row])
    values = column.cast(pa.large_string())
    names = [str(split.train), str(split.valid), str(split.test)]
    part = pc.index_in(values, value_set=pa.array(names, pa.large_string()))
    if (row := first_row(part.is_null())) is not None:
        expected = f"{names[0]}, {names[1]} or {names[2]} in column {split.column!r}"
        raise bad_input(file, expected, repr(values[row].as_py()), row=rows[row])
    return np.asarray(part.to_numpy(), np.int8)
