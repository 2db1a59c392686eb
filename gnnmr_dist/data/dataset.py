"""Opening a data set: verified first, then read only as far as asked for."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gnnmr_dist.data.feature_tables import BagTable, CategoryTable, DenseTable, FeatureTable, open_features
from gnnmr_dist.data.format import (
    MANIFEST,
    SPLITS,
    Manifest,
    ModalityInfo,
    modality_file,
    parse_manifest,
    vocabulary_file,
)
from gnnmr_dist.data.graph import Graph, open_graph
from gnnmr_dist.data.interactions import Interactions, open_parquet, read_interactions, read_parquet
from gnnmr_dist.data.validation import (
    check_content,
    check_files,
    check_structure,
    check_vocabulary,
    first_null,
    read_ids,
)
from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.storage import (
    Address,
    atomic_directory,
    copy_tree,
    exists,
    is_uri,
    join,
    read_bytes,
    write_bytes_atomic,
)

__all__ = [
    "BagTable",
    "CategoryTable",
    "Dataset",
    "DenseTable",
    "FeatureTable",
    "Interactions",
    "ModalityInfo",
    "open_dataset",
]

Verify = Literal["full", "structure"]


class Dataset:
    """A data set on disk. Splits and feature tables are opened when asked for, never before.

    ``path`` is what to give :func:`open_dataset` on another process or node; ``directory`` is where the files
    are on this one. Copies and messages to other processes carry the path only.
    """

    def __init__(self, path: str, directory: Path, manifest: Manifest) -> None:
        self.path = path
        self.directory = directory
        self.manifest = manifest
        self.name = manifest.name
        self.num_users = manifest.num_users
        self.num_items = manifest.num_items
        self.digest = manifest.digest
        self.modalities = manifest.modalities
        self.provenance = manifest.provenance

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path,)

    @cached_property
    def graph(self) -> Graph:
        """The train graph, mapped into memory."""
        return open_graph(self.directory / "graph", self.num_users, self.num_items)

    def interactions(self, split: str) -> Interactions:
        """The interactions of "train", "valid" or "test", read anew at every call.

        Raises:
            InputError: no such split, or its file is not what the manifest promises.
        """
        if split not in SPLITS:
            raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
        return read_interactions(self.directory, self.manifest, split)

    def modality(self, name: str) -> ModalityInfo:
        """What the manifest says of one modality.

        Raises:
            InputError: no such modality.
        """
        for info in self.modalities:
            if info.name == name:
                return info
        names = ", ".join(info.name for info in self.modalities)
        raise InputError(f"modality: expected one of {names}, got {name!r}")

    def features(self, name: str) -> FeatureTable:
        """The feature table of one modality, mapped into memory.

        Raises:
            InputError: no such modality, or its file is not what the manifest promises.
        """
        info = self.modality(name)
        return open_features(self.directory / modality_file(name), info, self.num_items)

    def vocabulary(self, name: str) -> list[str]:
        """The values behind the codes 0..dim-1 of a category or bag modality.

        Raises:
            InputError: no such modality, it is dense, or its file is not what the manifest promises.
        """
        info = self.modality(name)
        if info.kind == "dense":
            raise InputError(f"modality {name!r}: expected kind category or bag, got dense")
        file = self.directory / vocabulary_file(name)
        check_vocabulary(file, info)
        return [str(value) for value in read_parquet(file)["value"].to_pylist()]

    @cached_property
    def _user_id_column(self) -> Any:
        return read_ids(self.directory / "users.parquet", self.num_users)

    @cached_property
    def _item_id_column(self) -> Any:
        return read_ids(self.directory / "items.parquet", self.num_items)

    @property
    def user_ids(self) -> npt.NDArray[Any]:
        """Original ids of the users, int64 or object (str) [U]."""
        return np.asarray(self._user_id_column.to_numpy(zero_copy_only=False))

    @property
    def item_ids(self) -> npt.NDArray[Any]:
        """Original ids of the items, int64 or object (str) [I]."""
        return np.asarray(self._item_id_column.to_numpy(zero_copy_only=False))

    @cached_property
    def item_titles(self) -> list[str]:
        """Title of every item [I]; its id where there is none."""
        ids = self._item_id_column.cast(pa.string())
        file = self.directory / "items.parquet"
        if "title" not in open_parquet(file).schema_arrow.names:
            return [str(title) for title in ids.to_pylist()]
        titles = read_parquet(file, ["title"])["title"].combine_chunks().cast(pa.string())
        return [str(title) for title in pc.coalesce(titles, ids).to_pylist()]

    def user_number(self, ids: Sequence[str] | Sequence[int]) -> npt.NDArray[np.int64]:
        """Numbers int64 [k] of users by their original ids (an integer id may be given as text).

        Raises:
            InputError: an id is unknown (named).
        """
        return _numbers("user", self.directory / "users.parquet", self._user_id_column, ids)

    def item_number(self, ids: Sequence[str] | Sequence[int]) -> npt.NDArray[np.int64]:
        """Numbers int64 [k] of items by their original ids (an integer id may be given as text).

        Raises:
            InputError: an id is unknown (named).
        """
        return _numbers("item", self.directory / "items.parquet", self._item_id_column, ids)


def open_dataset(path: Address, *, verify: Verify = "full") -> Dataset:
    """Open the data set at a local path or a URI; a remote one is copied to this node's cache once.

    ``verify="structure"`` checks manifest, file sizes, schemas and counts; ``"full"`` also checksums and
    every value. The cache is ``$GNNMR_CACHE`` or ``~/.cache/gnnmr_dist``.

    Raises:
        InputError: no data set is there, or it breaks a rule of docs/data-format.md (one line).
    """
    if verify not in ("full", "structure"):
        raise InputError(f'verify: expected "full" or "structure", got {verify!r}')
    address = os.fspath(path) if is_uri(path) else os.path.abspath(path)
    try:
        directory = _cached(address) if is_uri(address) else Path(address)
        manifest = _verified(directory, checksums=verify == "full")
    except OSError as error:
        raise bad_input(address, "a data set that can be read", f"an error ({error})") from error
    return Dataset(address, directory, manifest)


def _reopen(path: str) -> Dataset:
    return open_dataset(path, verify="structure")


def _verified(directory: Path, *, checksums: bool) -> Manifest:
    if not directory.is_dir():
        raise bad_input(directory, "a directory", "a file" if directory.exists() else "nothing there")
    manifest = parse_manifest(_manifest_bytes(str(directory)), directory / MANIFEST)
    check_files(directory, manifest, checksums=checksums)
    check_structure(directory, manifest)
    if checksums:
        check_content(directory, manifest)
    return manifest


def _manifest_bytes(root: str) -> bytes:
    file = join(root, MANIFEST)
    if not exists(file):
        raise bad_input(file, "a manifest", "nothing there (no data set, or one that was never finished)")
    return read_bytes(file)


def _cached(uri: str) -> Path:
    """This node's copy of a remote data set; one process downloads while others wait for it."""
    content = _manifest_bytes(uri)
    manifest = parse_manifest(content, join(uri, MANIFEST))
    cache = Path(os.environ.get("GNNMR_CACHE") or Path.home() / ".cache" / "gnnmr_dist")
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / manifest.digest
    with open(cache / f"{manifest.digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            with atomic_directory(directory) as temporary:
                _download(uri, manifest, temporary)
        if not (directory / MANIFEST).exists() or (directory / MANIFEST).read_bytes() != content:
            write_bytes_atomic(directory / MANIFEST, content)
    return directory


def _download(uri: str, manifest: Manifest, directory: Path) -> None:
    copy_tree(uri, directory)
    try:
        check_files(directory, manifest, checksums=True)
    except InputError as error:
        raise InputError(str(error).replace(str(directory), uri)) from error


def _numbers(what: str, file: Path, column: Any, ids: Sequence[Any]) -> npt.NDArray[np.int64]:
    texts = [str(wanted) for wanted in ids]
    numbers = pc.index_in(pa.array(texts, pa.string()), value_set=column.cast(pa.string()))
    if numbers.null_count:
        raise bad_input(file, f"a known {what} id", repr(ids[first_null(numbers)]))
    return np.asarray(numbers.to_numpy().astype(np.int64))
