"""The features of the items as one sparse matrix, for models that are linear in them. Axes: I items, F columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from gnnmr_dist.data.feature_tables import CategoryTable, DenseTable, FeatureTable

_BLOCK = 1 << 14  # rows


def size(tables: Sequence[FeatureTable]) -> tuple[int, int]:
    """F and the most entries that are not zero, without making the matrix."""
    return sum(_columns(table) for table in tables), sum(_entries(table) for table in tables)


def item_matrix(
    tables: Sequence[FeatureTable], *, catalogue: Sequence[FeatureTable] | None = None
) -> sp.csr_matrix:
    """Float32 [I, F]: the M tables side by side, each item's row of each scaled to length 1 / sqrt(M).

    So the product of two rows is the mean over modalities of a cosine: of one-hot categories whether they are equal,
    of bags the cosine of their indicator vectors, of dense vectors the cosine after the mean of the present rows was
    taken off (ours: else all texts are alike). A missing row is zero, and so is all it is multiplied with.
    ``catalogue``: where ``tables`` are of new items, those whose means and columns count.

    Raises:
        ValueError: there is no table.
    """
    if not tables:
        raise ValueError("expected one feature table or more")
    pairs = zip(tables, tables if catalogue is None else catalogue, strict=True)
    matrix = sp.hstack([_unit_rows(*pair) for pair in pairs], format="csr", dtype=np.float32)
    matrix.data /= np.float32(len(tables) ** 0.5)
    return matrix


def _columns(table: FeatureTable) -> int:
    if isinstance(table, DenseTable):
        return int(table.values.shape[1])
    return int(table.codes.max(initial=-1)) + 1


def _entries(table: FeatureTable) -> int:
    return int(table.values.size if isinstance(table, DenseTable) else table.codes.size)


def _unit_rows(table: FeatureTable, origin: FeatureTable) -> sp.csr_matrix:
    if isinstance(table, DenseTable):
        assert isinstance(origin, DenseTable)
        return _dense(table, _mean(origin))
    if isinstance(table, CategoryTable):
        counts, codes = table.present.astype(np.int64), table.codes[table.present]
    else:
        counts, codes = np.diff(table.offsets), table.codes
    indptr = np.concatenate([[0], np.cumsum(counts)])
    values = np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts).astype(np.float32)
    matrix = sp.csr_matrix((values, codes, indptr), shape=(table.num_rows, _columns(table)))
    matrix.sum_duplicates()
    matrix.resize(table.num_rows, _columns(origin))
    return matrix


def _dense(table: DenseTable, mean: npt.NDArray[np.float64]) -> sp.csr_matrix:
    blocks = []
    for start in range(0, table.num_rows, _BLOCK):
        block = table.values[start : start + _BLOCK] - mean
        block[~table.present[start : start + _BLOCK]] = 0
        length = np.linalg.norm(block, axis=1, keepdims=True)
        blocks.append(sp.csr_matrix((block / np.where(length > 0, length, 1)).astype(np.float32)))
    return sp.vstack(blocks, format="csr")


def _mean(table: DenseTable) -> npt.NDArray[np.float64]:
    """Of the present rows [dim]; missing rows are stored as zeros."""
    total = np.zeros(table.values.shape[1])
    for start in range(0, table.num_rows, _BLOCK):
        total += table.values[start : start + _BLOCK].sum(axis=0, dtype=np.float64)
    return total / max(int(table.present.sum()), 1)
