"""PMGT's item-item graph: items joined by common users in train, and the context of every item.

Axes: I items, k neighbours kept, n items asked for, S size of a context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from gnnmr_dist.data.graph import Graph

KEPT = 50
"""Neighbours kept of an item: of the whole co-interaction graph most edges are chance (assumed)."""
SECOND_HOP = 0.5
"""How much a neighbour's neighbour counts beside a neighbour (assumed)."""
_ROWS = 1024

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """Of every item others in falling order: ``items`` int64 [I, k], -1 where there are no more, ``weights`` [I, k]."""

    items: Int64Array
    weights: FloatArray

    def sample(self, of: Int64Array, size: int, random: np.random.Generator) -> Int64Array:
        """Of each of ``of`` [n], ``size`` others without replacement, in falling order of weight: [n, size], -1 = none.

        The chance follows the weights (Gumbel's trick: the largest of log weight + noise).
        """
        weights = self.weights[of]
        with np.errstate(divide="ignore"):
            keys = np.log(weights) + random.gumbel(size=weights.shape)
        size_here = min(size, weights.shape[1])
        chosen = np.sort(np.argsort(-keys, axis=1, kind="stable")[:, :size_here], axis=1)
        found = np.full((of.size, size), -1, np.int64)
        found[:, :size_here] = np.take_along_axis(self.items[of], chosen, axis=1)
        return found

    def first(self, of: Int64Array, size: int) -> Int64Array:
        """The ``size`` of largest weight, [n, size], -1 = none."""
        found = np.full((of.size, size), -1, np.int64)
        some = self.items[of, :size]
        found[:, : some.shape[1]] = some
        return found


def co_interactions(graph: Graph, kept: int = KEPT) -> Ranked:
    """The neighbours of every item: c_ij / sqrt(deg i deg j), c = number of common train users; the ``kept`` largest.

    Costs the sum of the users' squared degrees; memory is that of 1024 items' rows.
    """
    users, items = graph.edges(np.arange(graph.num_edges))
    shape = (graph.num_users, graph.num_items)
    matrix = sp.csr_matrix((np.ones(users.size), (users, items)), shape)
    scale = sp.diags(1 / np.sqrt(np.maximum(graph.degree()[graph.num_users :], 1)))
    normed = sp.csr_matrix(matrix @ scale)
    return _ranked(sp.csr_matrix(normed.T), normed, kept)


def two_hops(near: Ranked, kept: int = KEPT) -> Ranked:
    """Importance over one and two hops: P + SECOND_HOP * P P, with P the neighbours' weights at sum 1."""
    count, k = near.items.shape
    real = near.items >= 0
    rows = np.repeat(np.arange(count), k).reshape(count, k)[real]
    total = np.maximum(near.weights.sum(axis=1, keepdims=True), 1e-300)
    step = sp.csr_matrix(((near.weights / total)[real], (rows, near.items[real])), (count, count))
    hops = sp.csr_matrix(sp.identity(count) + SECOND_HOP * step)
    return _ranked(step, hops, kept)


def _ranked(left: sp.csr_matrix, right: sp.csr_matrix, kept: int) -> Ranked:
    """Each row's largest of left @ right off the diagonal; equal ones by number."""
    count = left.shape[0]
    items, weights = np.full((count, kept), -1, np.int64), np.zeros((count, kept))
    for start in range(0, count, _ROWS):
        product = sp.csr_matrix(left[start : start + _ROWS] @ right)
        product.sort_indices()
        for row in range(product.shape[0]):
            own = slice(product.indptr[row], product.indptr[row + 1])
            there = product.indices[own] != start + row
            column, value = product.indices[own][there], product.data[own][there]
            best = np.argsort(-value, kind="stable")[:kept]
            items[start + row, : best.size], weights[start + row, : best.size] = column[best], value[best]
    return Ranked(items, weights)
