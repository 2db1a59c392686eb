"""The interactions of one split: reading their Parquet file and checking what it says."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist.data.format import SPLITS, Manifest, split_file
from gnnmr_dist.errors import bad_input
from gnnmr_dist.storage import Address, join

Keys = npt.NDArray[np.int64]

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
        return pq.ParquetFile(file, memory_map=True)
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


def to_interactions(file: Address, table: Any) -> Interactions:
    """An Arrow table as :class:`Interactions`; ``file`` names it in errors.

    Raises:
        InputError: a column is missing or of a wrong type, or a value is null.
    """
    check_columns(file, table.schema)
    for name in table.column_names:
        if table[name].null_count:
            row = int(np.argmax(table[name].is_null().to_numpy()))
            raise bad_input(file, f'a value in column "{name}"', "null", row=row)
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


def check_interactions(file: Address, split: Interactions, num_users: int, num_items: int) -> Keys:
    """The sorted keys ``user * num_items + item`` int64 [E] of valid interactions.

    Raises:
        InputError: no rows, a number out of range, a pair twice, or a weight that is not finite (row named).
    """
    if not split.num_rows:
        raise bad_input(file, "at least one interaction", "none")
    for name, numbers, bound in (("user", split.users, num_users), ("item", split.items, num_items)):
        if numbers.min() < 0 or numbers.max() >= bound:
            row = int(np.argmax((numbers < 0) | (numbers >= bound)))
            raise bad_input(file, f"{name} in 0..{bound - 1}", numbers[row], row=row)
    if split.weights is not None and not np.isfinite(split.weights).all():
        row = int(np.argmin(np.isfinite(split.weights)))
        raise bad_input(file, "a finite weight", split.weights[row], row=row)
    keys = split.users.astype(np.int64) * num_items + split.items
    ordered = keys if bool(np.all(keys[1:] > keys[:-1])) else np.sort(keys)
    repeated = ordered[1:] == ordered[:-1]
    if repeated.any():
        first, second = np.flatnonzero(keys == ordered[1:][repeated][0])[:2]
        got = f"user {split.users[second]}, item {split.items[second]} again (first in row {first})"
        raise bad_input(file, "each user-item pair once", got, row=int(second))
    return ordered


def check_disjoint(directory: Address, keys: dict[str, Keys], num_items: int) -> None:
    """Raise InputError if a pair stands in two splits; ``keys`` as :func:`check_interactions` gives them."""
    for one, other in combinations(SPLITS, 2):
        position = np.searchsorted(keys[one], keys[other])
        shared = keys[one][np.minimum(position, keys[one].size - 1)] == keys[other]
        if shared.any():
            user, item = divmod(int(keys[other][np.argmax(shared)]), num_items)
            expected = f"no pair of {split_file(one)}"
            raise bad_input(join(directory, split_file(other)), expected, f"user {user}, item {item}")
