"""Item features from raw files: dense vectors, categories and bags, checked and put in item order."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnmr_dist.data.categories import bag, category, code_column
from gnnmr_dist.data.columns import first_row, id_column, number, plain, unique_ids
from gnnmr_dist.data.recipe import (
    MODALITY_NAME,
    BagModality,
    CategoriesModality,
    CategoryModality,
    DenseModality,
    Modality,
)
from gnnmr_dist.data.scratch import Growing, scratch
from gnnmr_dist.data.tables import Source
from gnnmr_dist.data.writer import ModalityData
from gnnmr_dist.errors import bad_input

_BLOCK_ROWS = 1 << 16

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Catalogue:
    """The items features are for.

    ``ids``: every known item id; ``kept`` int64 [I]: the position among them of item 0..I-1 of the data set;
    ``table``: the rows of the item table, in the order of ``ids``, or None where there is no table.
    """

    source: Source
    ids: pa.ChunkedArray
    kept: npt.NDArray[np.integer]
    table: pa.Table | None
    file: str


def load_modality(recipe: Modality, catalogue: Catalogue) -> list[ModalityData]:
    """The modalities one recipe entry describes: one, or several for kind ``categories``.

    Raises:
        InputError: the files do not fit the recipe, the catalogue or each other.
    """
    if isinstance(recipe, DenseModality):
        return [_dense(recipe, catalogue)]
    if isinstance(recipe, BagModality):
        columns = [plain(_item_table(catalogue, recipe.name), name) for name in recipe.columns]
        taken = [column.take(catalogue.kept) for column in columns]
        return [bag(recipe, taken, catalogue.kept, catalogue.file)]
    if isinstance(recipe, CategoryModality):
        return [_category_of_column(recipe.name, recipe.column, recipe.min_count, catalogue)]
    if recipe.columns is not None:
        return [
            _category_of_column(recipe.prefix + name, name, recipe.min_count, catalogue)
            for name in recipe.columns
        ]
    return _category_matrix(recipe, catalogue)


def item_columns(modalities: Sequence[Modality]) -> list[str]:
    """The columns of the item table that the modalities are made of."""
    names: list[str] = []
    for modality in modalities:
        if isinstance(modality, CategoryModality):
            names.append(modality.column)
        elif isinstance(modality, BagModality | CategoriesModality):
            names.extend(modality.columns or ())
    return names


def _item_table(catalogue: Catalogue, modality: str) -> pa.Table:
    if catalogue.table is None:
        raise bad_input(catalogue.file, f"a section [items] (modality {modality!r} is made of it)", "none")
    return catalogue.table


def _category_of_column(name: str, column: str, min_count: int, catalogue: Catalogue) -> ModalityData:
    values = plain(_item_table(catalogue, name), column)
    kept = catalogue.kept
    return category(name, values.take(kept), kept, min_count, catalogue.file, column)


def _category_matrix(recipe: CategoriesModality, catalogue: Catalogue) -> list[ModalityData]:
    source = catalogue.source
    _item_table(catalogue, f"{recipe.prefix}*")
    assert recipe.file is not None  # the recipe's own check: `columns`, or `file` with `names`
    assert recipe.names is not None
    codes = _matrix(source.array(recipe.file), source.label(recipe.file))
    _expect_rows(codes, len(catalogue.ids), source.label(recipe.file))
    if not np.issubdtype(codes.dtype, np.integer):
        raise bad_input(source.label(recipe.file), "integer category codes", f"dtype {codes.dtype}")
    names = _read_names(source, recipe.names, codes.shape[1])
    label = source.label(recipe.file)
    kept = catalogue.kept
    return [
        code_column(recipe.prefix + name, codes[kept, column], kept, recipe.min_count, label, column)
        for column, name in enumerate(names)
    ]


def _read_names(source: Source, file: str, count: int) -> list[str]:
    with source.read(file) as stream:
        try:
            content = json.loads(stream.read())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise bad_input(source.label(file), "JSON", error) from None
    if not isinstance(content, list | dict) or not all(isinstance(name, str) for name in content):
        raise bad_input(
            source.label(file), "a list of names, or an object whose keys are the names", "neither"
        )
    if len(content) != count:
        raise bad_input(source.label(file), f"{count} names, one per column of the matrix", len(content))
    for name in content:
        if not re.match(MODALITY_NAME, name):
            raise bad_input(source.label(file), "names of letters, digits, '_' and '-'", repr(name))
    return list(content)


def _matrix(array: npt.NDArray[Any], file: str) -> npt.NDArray[Any]:
    if array.ndim != 2 or array.shape[1] == 0:
        raise bad_input(file, "a matrix [rows, dim] with dim at least 1", f"shape {list(array.shape)}")
    return array


def _expect_rows(array: npt.NDArray[Any], rows: int, file: str) -> None:
    if array.shape[0] != rows:
        raise bad_input(file, f"{rows} rows, one per item", array.shape[0])


def _dense(recipe: DenseModality, catalogue: Catalogue) -> ModalityData:
    matrix, row_of_item, file = _locate_rows(recipe, catalogue)
    if matrix.dtype.kind not in "fiub":
        raise bad_input(file, "a matrix of numbers", f"dtype {matrix.dtype}")
    row = row_of_item[catalogue.kept]
    values = scratch((row.size, matrix.shape[1]), recipe.dtype)
    present = np.zeros(row.size, bool)
    moments = _moments(recipe, matrix, row, file)
    for start in range(0, row.size, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        raw, there = _block(recipe, matrix, row[block], file)
        values[block] = _narrow(_normalised(recipe, raw, there, moments), recipe.dtype, row[block], file)
        present[block] = there
    if not present.any():
        raise bad_input(file, "a value for at least one item", "none (every row is missing)")
    return ModalityData(recipe.name, "dense", matrix.shape[1], present, values, None, None, None)


def _locate_rows(
    recipe: DenseModality, catalogue: Catalogue
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], str]:
    """The matrix, the row of every known item (-1 = none), and the file's name."""
    source, file = catalogue.source, catalogue.source.label(recipe.file)
    if source.is_directory(recipe.file):
        return _directory_matrix(recipe, catalogue)
    if not recipe.file.endswith(".npy"):
        matrix, ids = _vector_table(recipe, source, file)
        return matrix, _rows_by_id(recipe, ids, catalogue, file, recipe.id), file
    matrix = _matrix(source.array(recipe.file), file)
    if recipe.ids is None:
        if catalogue.table is None:
            raise bad_input(
                catalogue.file, f"a section [items], or `ids` of modality {recipe.name!r}", "neither"
            )
        _expect_rows(matrix, len(catalogue.ids), file)
        return matrix, np.arange(matrix.shape[0]), file
    ids = _read_ids(recipe, recipe.ids, source)
    if len(ids) != matrix.shape[0]:
        raise bad_input(source.label(recipe.ids), f"{matrix.shape[0]} ids, one per row of {file}", len(ids))
    return matrix, _rows_by_id(recipe, ids, catalogue, source.label(recipe.ids), recipe.id), file


def _read_ids(recipe: DenseModality, ids: str, source: Source) -> pa.ChunkedArray:
    file = source.label(ids)
    if not ids.endswith(".npy"):
        return id_column(source.table(ids, [recipe.id]), file, recipe.id)
    array = source.array(ids)
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise bad_input(
            file, "a list of integer or text ids", f"shape {list(array.shape)}, dtype {array.dtype}"
        )
    column = pa.array(array.tolist() if array.dtype.kind == "U" else np.asarray(array))
    return id_column(pa.table({recipe.id: column}), file, recipe.id)


def _rows_by_id(
    recipe: DenseModality, ids: pa.ChunkedArray, catalogue: Catalogue, file: str, column: str
) -> npt.NDArray[np.int64]:
    unique_ids(ids, file, column)
    item = number(ids, catalogue.ids)
    unknown = first_row(item < 0)
    if unknown is not None and recipe.unknown_ids == "error":
        raise bad_input(file, "the id of an item", f"unknown id {ids[unknown].as_py()!r}", row=unknown)
    row_of_item = np.full(len(catalogue.ids), -1, np.int64)
    row_of_item[item[item >= 0]] = np.flatnonzero(item >= 0)
    return row_of_item


def _vector_table(
    recipe: DenseModality, source: Source, file: str
) -> tuple[npt.NDArray[Any], pa.ChunkedArray]:
    """The vectors of a table, batch by batch into a scratch file, and their ids."""
    out: Growing | None = None
    tables: list[pa.Table] = []
    for table in source.batches(recipe.file, [recipe.id, recipe.vector]):
        rows = range(out.size if out else 0, (out.size if out else 0) + table.num_rows)
        vectors = _vectors(table, recipe.vector, file, rows, out.row[0] if out else None)
        if out is None:
            out = Growing(vectors.dtype, vectors.shape[1:])
        out.append(vectors)
        tables.append(table.select([recipe.id]))
    assert out is not None  # a table has at least one row
    return out.array(), id_column(pa.concat_tables(tables), file, recipe.id)


def _vectors(table: pa.Table, name: str, file: str, rows: range, dim: int | None) -> npt.NDArray[Any]:
    """A batch of vectors [n, dim], all of the length ``dim`` of the first (None: the first is among them)."""
    column = plain(table, name).combine_chunks()
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise bad_input(file, f"vectors (lists of numbers) in column {name!r}", f"type {kind}")
    if (row := first_row(np.asarray(column.is_null()))) is not None:
        raise bad_input(file, f"a vector in column {name!r}", "null (leave the row out)", row=rows[row])
    if not pa.types.is_fixed_size_list(kind):
        lengths = np.asarray(column.value_lengths())
        dim = int(lengths[0]) if dim is None else dim
        if (row := first_row(lengths != dim)) is not None:
            raise bad_input(file, f"vectors of length {dim}", f"length {lengths[row]}", row=rows[row])
    flat = column.flatten()
    if flat.null_count:
        row = int(np.asarray(flat.is_null()).argmax()) // max(len(flat) // len(column), 1)
        raise bad_input(file, f"numbers in column {name!r}", "null", row=rows[row])
    values = flat.to_numpy(zero_copy_only=False)
    return _matrix(values.reshape(len(column), len(flat) // len(column)), file)


def _directory_matrix(
    recipe: DenseModality, catalogue: Catalogue
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], str]:
    source, directory = catalogue.source, recipe.file
    names = [name for name in source.names(directory) if name.endswith(".npy")]
    if not names:
        raise bad_input(source.label(directory), "one .npy file per item", "none")
    out: Growing | None = None
    for name in names:
        vector, file = source.array(f"{directory}/{name}"), source.label(f"{directory}/{name}")
        dim = out.row[0] if out else vector.size
        if vector.ndim != 1 or vector.size != dim or vector.size == 0 or vector.dtype.kind not in "fiub":
            expected = f"{dim} numbers (as in {names[0]})" if out else "a list of numbers, shape [dim]"
            raise bad_input(file, expected, f"shape {list(vector.shape)}, dtype {vector.dtype}")
        out = out or Growing(np.float64, vector.shape)
        out.append(vector[None])
    assert out is not None  # there are names
    ids = pa.chunked_array([pa.array([name.removesuffix(".npy") for name in names], pa.large_string())])
    label = source.label(directory)
    return out.array(), _rows_by_id(recipe, ids, catalogue, label, "file name"), label


def _block(
    recipe: DenseModality, matrix: npt.NDArray[Any], row: npt.NDArray[np.int64], file: str
) -> tuple[npt.NDArray[np.float32], BoolArray]:
    """Rows as float32 (zero where there is none), and which of them are there."""
    there = row >= 0
    raw = np.zeros((row.size, matrix.shape[1]), np.float32)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is told below
        raw[there] = matrix[row[there]]
    bad = first_row(~np.isfinite(raw).all(axis=1))
    if bad is not None:
        value = raw[bad][~np.isfinite(raw[bad])][0]
        raise bad_input(file, "finite numbers (float32)", value, row=int(row[bad]))
    if recipe.zero_is_missing:
        there &= raw.any(axis=1)
    return raw, there


def _moments(
    recipe: DenseModality, matrix: npt.NDArray[Any], row: npt.NDArray[np.int64], file: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """Mean and standard deviation [dim] over the rows that are there (deviation 0 counts as 1)."""
    if recipe.normalise != "standardise":
        return None
    blocks = [row[start : start + _BLOCK_ROWS] for start in range(0, row.size, _BLOCK_ROWS)]
    count, total = 0, np.zeros(matrix.shape[1])
    for block in blocks:
        raw, there = _block(recipe, matrix, block, file)
        count, total = count + int(there.sum()), total + raw[there].sum(axis=0, dtype=np.float64)
    mean = total / max(count, 1)
    squares = np.zeros(matrix.shape[1])
    for block in blocks:
        raw, there = _block(recipe, matrix, block, file)
        squares += ((raw[there] - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(squares / max(count, 1))
    return mean, np.where(deviation > 0, deviation, 1.0)


def _normalised(
    recipe: DenseModality,
    raw: npt.NDArray[np.float32],
    there: BoolArray,
    moments: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None,
) -> npt.NDArray[np.float64]:
    values = raw.astype(np.float64)
    if moments is not None:
        values = (values - moments[0]) / moments[1]
    elif recipe.normalise == "l2":
        length = np.linalg.norm(values, axis=1, keepdims=True)
        values /= np.where(length > 0, length, 1.0)
    values[~there] = 0.0
    return values


def _narrow(
    values: npt.NDArray[np.float64], dtype: str, row: npt.NDArray[np.int64], file: str
) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):  # told below
        narrow = values.astype(dtype)
    bad = first_row(~np.isfinite(narrow).all(axis=1))
    if bad is not None:
        expected = f'numbers that fit {dtype} (normalise, or set dtype = "float32")'
        raise bad_input(file, expected, np.abs(values[bad]).max(), row=int(row[bad]))
    return narrow
