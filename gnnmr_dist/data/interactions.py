"""The interactions of one split: reading their Parquet file and checking what it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist.data.format import SPLITS, Manifest, split_file
from gnnmr_dist.data.pairs import Pairs, first_disorder, first_shared
from gnnmr_dist.data.scratch import BLOCK_ROWS, blocks, scratch
from gnnmr_dist.errors import bad_input
from gnnmr_dist.storage import Address, join

REQUIRED = {"user": pa.int32(), "item": pa.int32()}
OPTIONAL = {"timestamp": pa.int64(), "weight": pa.float32()}


@dataclass(frozen=True)
class Interactions:
    """E user-item pairs in ascending (user, item) order as written: ``users``, ``items`` int32 [E] and, where
    known, ``timestamps`` int64 [E] (the source's unit, see the provenance) and ``weights`` float32 [E]."""

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    timestamps: npt.NDArray[np.int64] | None = None
    weights: npt.NDArray[np.float32] | None = None

    @property
    def num_rows(self) -> int:
        """E, the number of interactions."""
        return int(self.users.size)


def open_parquet(file: Path) -> Any:
    """The open ``pyarrow.parquet.ParquetFile``.

    Raises:
        InputError: the file is not Parquet.
    """
    try:
        return pq.ParquetFile(file, memory_map=True, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise bad_input(file, "a Parquet file", "bytes of another or a damaged format") from error


def read_parquet(file: Path, columns: list[str] | None = None) -> Any:
    """The Arrow table of some columns (default: all).

    Raises:
        InputError: the file is not Parquet, or damaged.
    """
    parquet = open_parquet(file)
    try:
        return parquet.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise bad_input(file, "a sound Parquet file", "damaged pages") from error


def check_num_rows(file: Address, expected: int, got: int) -> None:
    """Raise InputError unless the numbers of rows are equal."""
    if expected != got:
        raise bad_input(file, f"{expected} rows", got)


def check_columns(file: Address, schema: Any) -> None:
    """Raise InputError unless the Arrow schema is that of interactions."""
    for name in REQUIRED:
        if name not in schema.names:
            raise bad_input(file, f'a column "{name}"', ", ".join(schema.names) or "no columns")
    for name in schema.names:
        wanted = REQUIRED.get(name) or OPTIONAL.get(name)
        if wanted is None:
            raise bad_input(file, f"columns {', '.join([*REQUIRED, *OPTIONAL])} only", f'"{name}"')
        if schema.field(name).type != wanted:
            raise bad_input(file, f'column "{name}" of type {wanted}', schema.field(name).type)


def to_interactions(file: Address, table: Any, first_row: int = 0) -> Interactions:
    """An Arrow table as :class:`Interactions`; ``file`` and ``first_row``, its place there, name it in errors.

    Raises:
        InputError: a column is missing or of a wrong type, or a value is null.
    """
    check_columns(file, table.schema)
    for name in table.column_names:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise bad_input(file, f'a value in column "{name}"', "null", row=first_row + row)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return Interactions(columns["user"], columns["item"], columns.get("timestamp"), columns.get("weight"))


def read_interactions(directory: Path, manifest: Manifest, split: str) -> Interactions:
    """The interactions of a split.

    Raises:
        InputError: not Parquet, a column missing or of a wrong type, a null, or not as many rows as promised.
    """
    file = directory / split_file(split)
    table = read_parquet(file)
    check_num_rows(file, manifest.splits[split], table.num_rows)
    return to_interactions(file, table)


def read_pairs(directory: Path, manifest: Manifest, split: str) -> Pairs:
    """The pairs of a split in order, on disk; every value of its file is checked on the way, a batch at a time.

    Raises:
        InputError: as :func:`read_interactions` and :func:`check_interactions`.
    """
    file, rows = directory / split_file(split), manifest.splits[split]
    parquet = open_parquet(file)
    check_num_rows(file, rows, parquet.metadata.num_rows)
    users, items = scratch(rows, np.int32), scratch(rows, np.int32)
    first = 0
    for batch in _batches(file, parquet):
        part = to_interactions(file, batch, first)
        _check_values(file, part, manifest.num_users, manifest.num_items, first)
        users[first : first + part.num_rows] = part.users
        items[first : first + part.num_rows] = part.items
        first += part.num_rows
    check_num_rows(file, rows, first)
    return _in_order(file, users, items, manifest.num_items)


def _batches(file: Path, parquet: Any) -> Iterator[Any]:
    try:
        yield from (pa.table(batch) for batch in parquet.iter_batches(BLOCK_ROWS))
    except (pa.ArrowException, OSError) as error:
        raise bad_input(file, "a sound Parquet file", "damaged pages") from error


def check_interactions(file: Address, split: Interactions, num_users: int, num_items: int) -> Pairs:
    """The pairs of valid interactions, in (user, item) order; those already in order are not copied.

    Raises:
        InputError: no rows, a number out of range, a pair twice, or a weight that is not finite (row named).
    """
    if not split.num_rows:
        raise bad_input(file, "at least one interaction", "none")
    _check_values(file, split, num_users, num_items, 0)
    return _in_order(file, split.users, split.items, num_items)


def _check_values(file: Address, split: Interactions, num_users: int, num_items: int, first_row: int) -> None:
    for name, numbers, bound in (("user", split.users, num_users), ("item", split.items, num_items)):
        if numbers.size and (numbers.min() < 0 or numbers.max() >= bound):
            row = int(np.argmax((numbers < 0) | (numbers >= bound)))
            raise bad_input(file, f"{name} in 0..{bound - 1}", numbers[row], row=first_row + row)
    for block in blocks(0 if split.weights is None else split.num_rows):
        assert split.weights is not None
        finite = np.isfinite(split.weights[block])
        if not finite.all():
            row = block.start + int(np.argmin(finite))
            raise bad_input(file, "a finite weight", split.weights[row], row=first_row + row)


def _in_order(
    file: Address, users: npt.NDArray[np.int32], items: npt.NDArray[np.int32], num_items: int
) -> Pairs:
    pairs = Pairs(users, items)
    place = first_disorder(*pairs)
    if place >= 0:
        keys = np.sort(users.astype(np.int64) * num_items + items)
        pairs = Pairs(*(part.astype(np.int32) for part in np.divmod(keys, num_items)))
        place = first_disorder(*pairs)
    if place >= 0:
        user, item = pairs.users[place], pairs.items[place]
        first, second = np.flatnonzero((users == user) & (items == item))[:2]
        got = f"user {user}, item {item} again (first in row {first})"
        raise bad_input(file, "each user-item pair once", got, row=int(second))
    return pairs


def check_disjoint(directory: Address, pairs: dict[str, Pairs]) -> None:
    """Raise InputError if a pair stands in two splits; ``pairs`` as :func:`check_interactions` gives them."""
    for one, other in combinations(SPLITS, 2):
        place = first_shared(pairs[one], pairs[other])
        if place >= 0:
            user, item = pairs[other].users[place], pairs[other].items[place]
            expected = f"no pair of {split_file(one)}"
            raise bad_input(join(directory, split_file(other)), expected, f"user {user}, item {item}")
