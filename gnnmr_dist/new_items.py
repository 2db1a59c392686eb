"""Items the data set does not know, read from a Parquet file: id, title, and one column per modality.

Axes: n new items, I known items, M members, F length of a dense feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from gnnmr_dist.data.dataset import Dataset, ModalityInfo
from gnnmr_dist.data.feature_tables import BagTable, CategoryTable, DenseTable, FeatureTable
from gnnmr_dist.data.interactions import read_parquet
from gnnmr_dist.data.item_matrix import item_matrix
from gnnmr_dist.ease import NewItemScorer
from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.evaluation import new_item_vectors
from gnnmr_dist.fusion import FUSED, LINEAR
from gnnmr_dist.inference import embed_unlinked_items
from gnnmr_dist.loaded import LoadedRun
from gnnmr_dist.members import modalities_of
from gnnmr_dist.models.encoder import score_vectors
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.ranking import EmbeddingScorer, Scorer
from gnnmr_dist.storage import Address


@dataclass(frozen=True)
class NewItems:
    """n items known by their features alone.

    ``ids`` Arrow [n] of the data set's id type; ``titles`` Arrow string [n], the id where there is none; ``rows`` every
    modality's rows; ``notes`` what was left out, one line each.
    """

    ids: Any
    titles: Any
    rows: dict[str, ItemRows]
    notes: tuple[str, ...] = ()


def read_new_items(file: Address, dataset: Dataset) -> NewItems:
    """Read new items and check them against the data set (docs/results.md, "New items").

    Null, or a column that is not there, means that the item lacks the modality. Values of a category or bag that the
    data set's vocabulary lacks count as missing and are told in ``notes``: new values are a fact of serving.

    Raises:
        InputError: not Parquet, no items, an unknown column or one of a wrong type, an id that is null, stands twice or
            exists in the data set, or a dense row of a wrong length or with a value that is not finite (row named).
    """
    path = Path(file)
    if not path.is_file():
        raise bad_input(
            path, "a Parquet file of new items", "nothing there" if not path.exists() else "a directory"
        )
    table = read_parquet(path)
    names = [info.name for info in dataset.modalities]
    for name in table.column_names:
        if name not in ("id", "title", *names):
            raise bad_input(path, f"columns id, title, {', '.join(names)} only", repr(name))
    if len(set(table.column_names)) < table.num_columns:
        raise bad_input(path, "each column once", ", ".join(table.column_names))
    ids = _ids(path, table, dataset)
    titles = ids.cast(pa.string())
    if "title" in table.column_names:
        titles = pc.coalesce(_cast(path, table, "title", pa.string(), "strings"), titles)
    notes: list[str] = []
    rows = {info.name: _rows(path, table, info, dataset, notes) for info in dataset.modalities}
    unknown = sum(not any(bool(r.present[j]) for r in rows.values()) for j in range(len(ids)))
    if unknown:
        notes.append(
            f"{unknown} of {len(ids)} new items have no known feature at all: their rank means little"
        )
    return NewItems(ids, titles, rows, tuple(notes))


@torch.no_grad()
def score_with_new_items(run: LoadedRun, row: str, rows: Mapping[str, ItemRows]) -> Scorer:
    """As :meth:`LoadedRun.scorer`, over I + n items: the known ones, then new ones known by their features alone.

    New items have no popularity to fall back on (offset 0). This worker must host all members.

    Args:
        run: a finished run.
        row: what to score with.
        rows: every modality's rows of the n new items.

    Raises:
        InputError: an unknown row, or a method in closed form or a linear peer without features, which know nothing of
            such items.
    """
    run.require_networks("new items")
    run.require_row(row)
    if row not in (FUSED, LINEAR):
        return _networks(run, row, rows)
    assert run.fusion is not None
    if row == FUSED:
        return run.fused(_networks(run, "concatenation", rows), _linear(run, rows))
    if not run.fusion.linear.feature_weight:
        raise InputError(
            "new items: expected a row that reads features, got linear-peer, which has none in this run"
        )
    return _linear(run, rows)


def _linear(run: LoadedRun, rows: Mapping[str, ItemRows]) -> Scorer:
    assert run.fusion is not None
    if not run.fusion.linear.feature_weight:
        return run.linear
    names = [info.name for info in modalities_of(run.members)]
    catalogue = [run.dataset.features(name) for name in names]
    tables = [_table(rows[name], like) for name, like in zip(names, catalogue, strict=True)]
    new = item_matrix(tables, catalogue=catalogue)
    return NewItemScorer(run.linear, (item_matrix(catalogue) @ new.T).toarray())


def _table(rows: ItemRows, like: FeatureTable) -> FeatureTable:
    present, values = rows.present.numpy(), rows.values.numpy()
    if isinstance(like, DenseTable):
        return DenseTable(values, present)
    codes = values.astype(np.int32)
    if isinstance(like, CategoryTable):
        return CategoryTable(np.where(present, codes, np.int32(-1)), present)
    assert rows.offsets is not None
    return BagTable(rows.offsets.numpy(), codes, present)


def _networks(run: LoadedRun, row: str, rows: Mapping[str, ItemRows]) -> EmbeddingScorer:
    known = run.embeddings(row)
    device, score = run.mesh.device, run.settings.model.score
    n = next(iter(rows.values())).present.numel()
    read = [[rows[info.name].to(device) for info in member.modalities] for member, _ in run.encoders]
    embedded = [
        embed_unlinked_items(encoder, own, n) for (_, encoder), own in zip(run.encoders, read, strict=True)
    ]
    new = score_vectors(torch.stack(embedded), score)
    every = torch.ones(n, dtype=torch.bool, device=device)
    seen = [torch.stack([some.present for some in own]).any(dim=0) if own else every for own in read]
    hidden = torch.stack(seen) if run.hides else None
    more = new_item_vectors(row, run.names, run.vectors, new, hidden)
    items = torch.cat([known.item_embeddings, more])
    assert known.item_offset is not None
    offset = torch.cat([known.item_offset, known.item_offset.new_zeros(more.shape[0])])
    return replace(known, item_embeddings=items, item_offset=offset)


def _ids(path: Path, table: Any, dataset: Dataset) -> Any:
    if "id" not in table.column_names:
        raise bad_input(path, 'a column "id"', ", ".join(table.column_names) or "no columns")
    if not table.num_rows:
        raise bad_input(path, "at least one new item", "none")
    known = pa.array(dataset.item_ids)
    ids = _cast(path, table, "id", known.type, f"ids like the data set's, {known.type}")
    _first(path, ids.is_null(), "an id", lambda _: "null")
    counts = {str(entry["values"]): entry["counts"] for entry in pc.value_counts(ids).to_pylist()}
    again = [counts[str(i)] > 1 for i in ids.to_pylist()]
    _first(path, pa.array(again), "each id once", lambda row: repr(ids[row].as_py()))
    exists = pc.is_in(ids, value_set=known)
    _first(path, exists, "an id the data set does not have", lambda row: repr(ids[row].as_py()))
    return ids


def _rows(path: Path, table: Any, info: ModalityInfo, dataset: Dataset, notes: list[str]) -> ItemRows:
    if info.name not in table.column_names:
        return _none(table.num_rows, info)
    if info.kind == "dense":
        return _dense(path, table, info, dataset)
    if info.kind == "category":
        return _category(path, table, info, dataset, notes)
    return _bag(path, table, info, dataset, notes)


def _none(n: int, info: ModalityInfo) -> ItemRows:
    present = torch.zeros(n, dtype=torch.bool)
    if info.kind == "dense":
        return ItemRows(present, torch.zeros(n, info.dim))
    nothing = torch.zeros(n, dtype=torch.int64)
    return (
        ItemRows(present, nothing)
        if info.kind == "category"
        else ItemRows(present, nothing[:0], torch.zeros(n + 1, dtype=torch.int64))
    )


def _dense(path: Path, table: Any, info: ModalityInfo, dataset: Dataset) -> ItemRows:
    """Values take the data set's own dtype, so equal features give equal embeddings."""
    column = _cast(path, table, info.name, pa.list_(pa.float64()), f"lists of {info.dim} numbers")
    features = dataset.features(info.name)
    assert isinstance(features, DenseTable)
    values = np.zeros((len(column), info.dim), features.values.dtype)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(present):
        numbers = column[int(row)].values
        if len(numbers) != info.dim:
            raise bad_input(path, f"{info.dim} numbers in column {info.name!r}", len(numbers), row=int(row))
        if numbers.null_count:
            raise bad_input(path, f"no null inside a row of column {info.name!r}", "null", row=int(row))
        with np.errstate(over="ignore"):
            values[row] = numbers.to_numpy()
        if not np.isfinite(values[row]).all():
            got = numbers[int(np.argmin(np.isfinite(values[row])))]
            expected = f"finite values of {values.dtype} in column {info.name!r}"
            raise bad_input(path, expected, got, row=int(row))
    return ItemRows(torch.from_numpy(present.copy()), torch.from_numpy(values))


def _category(path: Path, table: Any, info: ModalityInfo, dataset: Dataset, notes: list[str]) -> ItemRows:
    column = _cast(path, table, info.name, pa.string(), "strings")
    codes = pc.index_in(column, value_set=pa.array(dataset.vocabulary(info.name), pa.string()))
    codes = pc.if_else(column.is_valid(), codes, None)
    _note_unknown(path, info.name, column, codes, notes)
    present = codes.is_valid().to_numpy(zero_copy_only=False)
    numbers = codes.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return ItemRows(torch.from_numpy(present.copy()), torch.from_numpy(numbers))


def _bag(path: Path, table: Any, info: ModalityInfo, dataset: Dataset, notes: list[str]) -> ItemRows:
    column = _cast(path, table, info.name, pa.list_(pa.string()), "lists of strings")
    parents, values = pc.list_parent_indices(column), pc.list_flatten(column)
    codes = pc.index_in(values, value_set=pa.array(dataset.vocabulary(info.name), pa.string()))
    codes = pc.if_else(values.is_valid(), codes, None)
    _note_unknown(path, info.name, values, codes, notes)
    known = codes.is_valid().to_numpy(zero_copy_only=False)
    counts = np.bincount(parents.to_numpy(zero_copy_only=False)[known], minlength=len(column))
    numbers = codes.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    return ItemRows(torch.from_numpy(counts > 0), torch.from_numpy(numbers), offsets)


def _note_unknown(path: Path, name: str, values: Any, codes: Any, notes: list[str]) -> None:
    unknown = pc.unique(values.filter(pc.and_(values.is_valid(), codes.is_null())))
    if len(unknown):
        shown = ", ".join(repr(v) for v in unknown[:3].to_pylist()) + (", ..." if len(unknown) > 3 else "")
        notes.append(
            f"{path}: {len(unknown)} values of column {name!r} are unknown and count as missing: {shown}"
        )


def _cast(path: Path, table: Any, name: str, wanted: Any, words: str) -> Any:
    column = table[name].combine_chunks()
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.cast(wanted)
    except pa.ArrowException:
        raise bad_input(path, f"column {name!r} of {words}", column.type) from None


def _first(path: Path, bad: Any, expected: str, got: Callable[[int], object]) -> None:
    """Raise InputError for the first row where ``bad`` is true."""
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise bad_input(path, expected, got(row), row=row)
