"""The rules of a data set directory (docs/data-format.md): each breach is one line naming file and row."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gnnmr_dist.data.feature_tables import check_features, open_features
from gnnmr_dist.data.format import (
    SPLITS,
    Manifest,
    ModalityInfo,
    data_files,
    modality_file,
    split_file,
    vocabulary_file,
)
from gnnmr_dist.data.graph import open_graph
from gnnmr_dist.data.interactions import (
    check_columns,
    check_disjoint,
    check_num_rows,
    open_parquet,
    read_pairs,
    read_parquet,
)
from gnnmr_dist.data.pairs import Pairs, first_difference
from gnnmr_dist.data.scratch import blocks
from gnnmr_dist.errors import bad_input
from gnnmr_dist.storage import Address


def check_files(directory: Path, manifest: Manifest, *, checksums: bool) -> None:
    """Raise InputError unless all files lie inside the directory with the size (and checksum) promised."""
    root = directory.resolve()
    for path in data_files(manifest.modalities):
        file, info = directory / path, manifest.files[path]
        if not file.resolve().is_relative_to(root):
            raise bad_input(file, "a file inside the data set", f"a link to {file.resolve()}")
        if not file.is_file():
            raise bad_input(file, "a file", "a directory" if file.exists() else "nothing there")
        if file.stat().st_size != info.bytes:
            raise bad_input(file, f"{info.bytes} bytes", file.stat().st_size)
        if checksums and (found := file_sha256(file)) != info.sha256:
            raise bad_input(file, f"sha256 {info.sha256[:12]}...", f"{found[:12]}...")


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_structure(directory: Path, manifest: Manifest) -> None:
    """Raise InputError unless schemas, types, numbers of rows and array shapes are those promised."""
    for split in SPLITS:
        file = directory / split_file(split)
        parquet = open_parquet(file)
        check_columns(file, parquet.schema_arrow)
        check_num_rows(file, manifest.splits[split], parquet.metadata.num_rows)
    for name, rows in (("users", manifest.num_users), ("items", manifest.num_items)):
        check_nodes(directory / f"{name}.parquet", rows)
    for info in manifest.modalities:
        open_features(directory / modality_file(info.name), info, manifest.num_items)
        if info.kind != "dense":
            check_vocabulary(directory / vocabulary_file(info.name), info)
    check_graph_shape(directory, manifest)


def check_content(directory: Path, manifest: Manifest) -> None:
    """Raise InputError unless every value of every file keeps the rules."""
    read_ids(directory / "users.parquet", manifest.num_users)
    read_ids(directory / "items.parquet", manifest.num_items)
    pairs = {split: read_pairs(directory, manifest, split) for split in SPLITS}
    check_disjoint(directory, pairs)
    check_graph(directory, manifest, pairs["train"])
    for info in manifest.modalities:
        file = directory / modality_file(info.name)
        check_features(file, open_features(file, info, manifest.num_items), info)


def check_nodes(file: Path, num_rows: int) -> None:
    """Raise InputError unless a users or items file has the columns of one and all rows."""
    parquet = open_parquet(file)
    check_node_schema(file, parquet.schema_arrow)
    check_num_rows(file, num_rows, parquet.metadata.num_rows)


def check_node_schema(file: Address, schema: Any) -> None:
    """Raise InputError unless an Arrow schema has ``id`` (string or int64); ``title``, if any, is string."""
    if "id" not in schema.names:
        raise bad_input(file, 'a column "id"', ", ".join(schema.names) or "no columns")
    if schema.field("id").type not in (pa.string(), pa.int64()):
        raise bad_input(file, 'column "id" of type string or int64', schema.field("id").type)
    if "title" in schema.names and schema.field("title").type != pa.string():
        raise bad_input(file, 'column "title" of type string', schema.field("title").type)


def check_vocabulary(file: Path, info: ModalityInfo) -> None:
    """Raise InputError unless a vocabulary has one string for each code."""
    schema = open_parquet(file).schema_arrow
    if schema.names != ["value"] or schema.field("value").type != pa.string():
        raise bad_input(file, 'one column "value" of type string', str(schema).replace("\n", ", "))
    values = read_parquet(file)["value"]
    check_num_rows(file, info.dim, len(values))
    if values.null_count:
        raise bad_input(file, "a value for every code", "null", row=first_null(values))


def check_ids(file: Address, ids: Any) -> None:
    """Raise InputError if an original id (Arrow array) is null or stands twice."""
    if ids.null_count:
        raise bad_input(file, "an id", "null", row=first_null(ids))
    encoded = ids.dictionary_encode()
    if len(encoded.dictionary) != len(ids):
        codes = encoded.indices.to_numpy()
        row = int(np.flatnonzero(np.diff(codes, prepend=-1) != 1)[0])  # new values get the next code each
        raise bad_input(file, "each id once", f"{ids[row].as_py()!r} again", row=row)


def check_graph_shape(directory: Path, manifest: Manifest) -> None:
    """Raise InputError unless the graph's arrays have the dtypes and shapes that the manifest implies."""
    num_nodes = manifest.num_users + manifest.num_items
    wanted = {"indptr": ("int64", (num_nodes + 1,)), "indices": ("int32", (2 * manifest.splits["train"],))}
    for name, (dtype, shape) in wanted.items():
        file = directory / "graph" / f"{name}.npy"
        try:
            array = np.lib.format.open_memmap(file, mode="r")
        except (ValueError, EOFError) as error:
            raise bad_input(file, "a NumPy array", "bytes of another or a damaged format") from error
        if str(array.dtype) != dtype or array.shape != shape:
            raise bad_input(file, f"{dtype} {list(shape)}", f"{array.dtype} {list(array.shape)}")


def check_graph(directory: Path, manifest: Manifest, train: Pairs) -> None:
    """Raise InputError unless the graph is that of the train pairs."""
    graph = open_graph(directory / "graph", manifest.num_users, manifest.num_items)
    expected = np.zeros(graph.num_nodes + 1, np.int64)
    for block in blocks(train.users.size):
        expected[1 : graph.num_users + 1] += np.bincount(train.users[block], minlength=graph.num_users)
        expected[graph.num_users + 1 :] += np.bincount(train.items[block], minlength=graph.num_items)
    np.cumsum(expected, out=expected)
    wrong, name = None, "indptr"
    if not np.array_equal(graph.indptr, expected):
        place = int(np.argmax(graph.indptr != expected))
        wrong = place, int(expected[place])
    elif (found := first_difference(graph, train)) is not None:
        wrong, name = found, "indices"
    if wrong is not None:
        place, right = wrong
        got = getattr(graph, name)[place]
        raise bad_input(directory / "graph" / f"{name}.npy", f"{right} (from train.parquet)", got, row=place)


def read_ids(file: Path, num_rows: int) -> Any:
    """Column ``id`` (Arrow array) of a users or items file; InputError if it breaks a rule."""
    check_nodes(file, num_rows)
    ids = read_parquet(file, ["id"])["id"].combine_chunks()
    check_ids(file, ids)
    return ids


def first_null(values: Any) -> int:
    """Row of the first null of an Arrow array that has one."""
    return int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
