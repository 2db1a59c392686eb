"""Writing a data set: checked before a byte is written, and visible only when it is whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist.data.feature_tables import arrow_type, check_features, to_features
from gnnmr_dist.data.format import (
    MANIFEST,
    SPLITS,
    FileInfo,
    Kind,
    Manifest,
    ModalityInfo,
    check_modalities,
    check_modality,
    data_files,
    manifest_text,
    modality_file,
    split_file,
    vocabulary_file,
)
from gnnmr_dist.data.graph import write_graph
from gnnmr_dist.data.interactions import (
    OPTIONAL,
    REQUIRED,
    check_disjoint,
    check_interactions,
    to_interactions,
)
from gnnmr_dist.data.scratch import blocks
from gnnmr_dist.data.validation import check_ids, check_node_schema, file_sha256
from gnnmr_dist.errors import InputError, RunError, bad_input
from gnnmr_dist.storage import Address, atomic_directory, copy_tree, is_uri, join, list_files


@dataclass(frozen=True)
class ModalityData:
    """One modality of I items, ready to be written.

    ``present`` is bool [I]. By kind: *dense* has ``values`` float16 or float32 [I, dim] (rows not present are
    written as zeros); *category* has ``values`` int32 [I], -1 where missing; *bag* has ``offsets`` int64
    [I+1] and ``codes`` int32, item i having ``codes[offsets[i]:offsets[i + 1]]``. Category and bag have a
    ``vocabulary`` of ``dim`` strings, one per code.
    """

    name: str
    kind: Kind
    dim: int
    present: npt.NDArray[np.bool_]
    values: npt.NDArray[Any] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    codes: npt.NDArray[np.int32] | None = None
    vocabulary: Sequence[str] | None = None


@dataclass(frozen=True)
class _Content:
    """Everything to be written, as Arrow, checked."""

    manifest: Manifest
    tables: Mapping[str, Any]
    features: Mapping[str, Any]


def write_dataset(
    output: Address,
    *,
    name: str,
    users: Any,
    items: Any,
    splits: Mapping[str, Any],
    modalities: Sequence[ModalityData],
    provenance: Mapping[str, Any],
) -> str:
    """Write a data set to a local path or a URI and return its digest.

    ``users`` and ``items`` are Arrow tables with a column ``id`` (string or int64; row = number), ``splits``
    maps "train", "valid" and "test" to tables with ``user`` and ``item`` (int32) and, if wanted,
    ``timestamp`` (int64) and ``weight`` (float32). Interactions are written in ascending
    (user, item) order, so row e of ``train.parquet`` is train edge e of the graph. A local data set
    appears by one rename; at a URI the manifest is uploaded last.

    Raises:
        InputError: ``output`` exists and is not an empty directory, or the data break a rule of
            docs/data-format.md (the file that would have been written and the row of the input are named).
        RunError: the disk or the remote file system fails.
    """
    try:
        _refuse_existing(output)
        content = _check(output, name, users, items, splits, modalities, provenance)
        return _write_whole(output, content)
    except OSError as error:
        raise RunError(f"{os.fspath(output)}: the data set could not be written: {error}") from error


def seal(directory: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` for the files that stand in ``directory``; its ``files`` are measured anew."""
    files = {}
    for path in data_files(manifest.modalities):
        file = directory / path
        files[path] = FileInfo(file.stat().st_size, file_sha256(file))
    sealed = replace(manifest, files=files)
    (directory / MANIFEST).write_text(manifest_text(sealed), encoding="utf-8")
    return sealed


def write_features(file: Path, columns: Sequence[Any], **options: Any) -> None:
    """Write Arrow arrays as record batches of a column ``value``; format 1 has one, uncompressed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("value", columns[0].type)])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema, **options) as writer:
        for column in columns:
            writer.write_batch(pa.record_batch([column], schema=schema))


def _check(
    root: Address,
    name: str,
    users: Any,
    items: Any,
    splits: Mapping[str, Any],
    modalities: Sequence[ModalityData],
    provenance: Mapping[str, Any],
) -> _Content:
    tables = {"users.parquet": _nodes(root, "users", users), "items.parquet": _nodes(root, "items", items)}
    tables |= _interactions(root, splits, users.num_rows, items.num_rows)
    features, infos = {}, []
    for data in modalities:
        info, column = _features(root, data, items.num_rows)
        infos.append(info)
        features[modality_file(info.name)] = column
        if info.kind != "dense":
            tables[vocabulary_file(info.name)] = _vocabulary(root, data)
    check_modalities(tuple(infos), items.num_rows, join(root, MANIFEST))
    rows = {split: splits[split].num_rows for split in SPLITS}
    manifest = Manifest(name, users.num_rows, items.num_rows, rows, tuple(infos), dict(provenance), {})
    return _Content(manifest, tables, features)


def _write_whole(output: Address, content: _Content) -> str:
    if not is_uri(output):
        with atomic_directory(Path(output)) as directory:
            return _write(directory, content)
    with TemporaryDirectory() as temporary:
        digest = _write(Path(temporary), content)
        copy_tree(temporary, output, last=MANIFEST)
    return digest


def _write(directory: Path, content: _Content) -> str:
    train = content.tables[split_file("train")]
    pairs = train["user"].to_numpy(), train["item"].to_numpy()
    nodes = content.manifest.num_users, content.manifest.num_items
    with ThreadPoolExecutor(1) as pool:  # the graph is built while tables are compressed
        graph = pool.submit(write_graph, directory / "graph", *pairs, *nodes)
        for path, column in content.features.items():
            write_features(directory / path, [column])
        for path, table in content.tables.items():
            pq.write_table(table, directory / path, compression="zstd")
        graph.result()
    return seal(directory, content.manifest).digest


def _nodes(root: Address, name: str, table: Any) -> Any:
    file = join(root, f"{name}.parquet")
    for column in ("id", "title"):
        if column in table.column_names and pa.types.is_large_string(table[column].type):
            position = table.column_names.index(column)
            table = table.set_column(position, column, table[column].cast(pa.string()))
    check_node_schema(file, table.schema)
    if not table.num_rows:
        raise bad_input(file, "at least one row", "none")
    check_ids(file, table["id"].combine_chunks())
    return table


def _interactions(root: Address, splits: Mapping[str, Any], num_users: int, num_items: int) -> dict[str, Any]:
    if set(splits) != set(SPLITS):
        raise bad_input(root, f"the splits {', '.join(SPLITS)}", ", ".join(splits) or "none")
    tables, pairs = {}, {}
    for split in SPLITS:
        file = join(root, split_file(split))
        interactions = to_interactions(file, splits[split])
        pairs[split] = check_interactions(file, interactions, num_users, num_items)
        columns = [name for name in (*REQUIRED, *OPTIONAL) if name in splits[split].column_names]
        table = splits[split].select(columns).replace_schema_metadata(None)
        if pairs[split].users is not interactions.users:  # they were put in order
            table = table.take(np.lexsort((interactions.items, interactions.users)))
        elif any(column.num_chunks > 1 for column in table.columns):  # chunks would show in the file's pages
            table = table.combine_chunks()
        tables[split_file(split)] = table
    check_disjoint(root, pairs)
    return tables


def _features(root: Address, data: ModalityData, num_items: int) -> tuple[ModalityInfo, Any]:
    file = join(root, modality_file(data.name))
    dtype = str(data.values.dtype) if data.kind == "dense" and data.values is not None else "int32"
    info = ModalityInfo(data.name, data.kind, data.dim, dtype, 0)
    check_modality(info, join(root, MANIFEST))
    _check_shapes(file, data, num_items)
    column = _column(data, arrow_type(info))
    table = to_features(column)
    info = replace(info, missing=num_items - int(np.count_nonzero(table.present)))
    check_features(file, table, info)
    return info, column


def _check_shapes(file: Address, data: ModalityData, num_items: int) -> None:
    rows: dict[str, tuple[str, tuple[int, ...]]] = {"present": ("bool", (num_items,))}
    if data.kind == "dense":
        rows["values"] = ("float16 or float32", (num_items, data.dim))
    elif data.kind == "category":
        rows["values"] = ("int32", (num_items,))
    else:
        rows["offsets"] = ("int64", (num_items + 1,))
        rows["codes"] = ("int32", (int(data.offsets[-1]) if data.offsets is not None else 0,))
    for name, (dtype, shape) in rows.items():
        array = getattr(data, name)
        if array is None:
            raise bad_input(file, f"{name} of {data.kind} modality {data.name!r}", "none")
        if array.shape != shape or str(array.dtype) not in dtype:
            raise bad_input(file, f"{name} {dtype} {list(shape)}", f"{array.dtype} {list(array.shape)}")


def _column(data: ModalityData, kind: Any) -> Any:
    missing = pa.array(~data.present)
    if data.kind == "bag":
        assert data.offsets is not None
        offsets = pa.array(data.offsets.astype(np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(data.codes), type=kind, mask=missing)
    assert data.values is not None
    if data.kind == "category":
        return pa.array(data.values, mask=~data.present)
    values = _zero_where_missing(data.values, data.present)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind, mask=missing)


def _zero_where_missing(values: npt.NDArray[Any], present: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """``values`` [I, dim] themselves where missing rows are zeros already, else a copy."""
    absent = np.flatnonzero(~present)
    if any(values[absent[rows]].any() for rows in blocks(absent.size, 1 << 12)):
        values = np.where(present[:, None], values, np.zeros((), values.dtype))
    return np.ascontiguousarray(values)


def _vocabulary(root: Address, data: ModalityData) -> Any:
    file = join(root, vocabulary_file(data.name))
    if data.vocabulary is None or len(data.vocabulary) != data.dim:
        got = "none" if data.vocabulary is None else len(data.vocabulary)
        raise bad_input(file, f"{data.dim} rows", got)
    return pa.table({"value": pa.array(list(data.vocabulary), pa.string())})


def _refuse_existing(output: Address) -> None:
    if not is_uri(output) and os.path.isfile(output):
        raise bad_input(output, "a new or empty directory", "a file")
    if list_files(output):
        raise InputError(f"{os.fspath(output)}: expected a new or empty directory, got one with files in it")
