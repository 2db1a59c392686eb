"""Global batches: positives, negatives and shared candidates of one step, the same for every worker.

Everything here is a pure function of (graph, seed, epoch, step) and of the two sizes; nothing depends on
ranks, on the number of workers or on what was drawn before.

Axes: B rows of the batch, C shared candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gnnmr_dist.data._draws import draw_distinct
from gnnmr_dist.data._kernels import draw_negatives, mark_known, read_only
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.randomness import Purpose, derive, permuted


@dataclass(frozen=True)
class GlobalBatch:
    """One step's rows, or one replica's share of them.

    Attributes:
        epoch, step: the place in training.
        users, items: int64 [B], positive train edges (item numbers, not node numbers).
        negatives: int64 [B], an item the user has no train interaction with; -1 where the user has
            interacted with every item drawn from, so that no negative exists: the caller masks such rows.
        candidates: int64 [C], distinct item numbers, ascending, shared by all rows.
    """

    epoch: int
    step: int
    users: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return int(self.users.size)


@dataclass(frozen=True)
class ItemPool:
    """The items that negatives and candidates are drawn from; every item of a train interaction is among them.

    Attributes:
        items: int64 [P], item numbers, ascending.
        places: int64 [I], each item's place in ``items``; of others the place where it would stand.
    """

    items: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


def trained_items(graph: Graph) -> ItemPool | None:
    """The items with a train interaction; None where all have one.

    An item that nobody has yet can be a negative but never a positive: where such items are drawn, models that read
    features learn to score what looks like them low (measured: docs/decisions.md, 2026-11-29).
    """
    known = np.diff(graph.indptr[graph.num_users :]) > 0
    return None if known.all() else ItemPool(np.flatnonzero(known), np.cumsum(known) - known)


def steps_per_epoch(num_edges: int, batch_size: int) -> int:
    """ceil(num_edges / batch_size): every train edge once per epoch, the last batch may be short.

    Raises:
        ValueError: batch_size is not positive, or num_edges is negative.
    """
    if batch_size < 1 or num_edges < 0:
        raise ValueError(f"batch_size must be positive and num_edges >= 0, got {batch_size} and {num_edges}")
    return -(-num_edges // batch_size)


def global_batch(
    graph: Graph,
    seed: int,
    epoch: int,
    step: int,
    *,
    batch_size: int,
    num_candidates: int,
    pool: ItemPool | None = None,
) -> GlobalBatch:
    """The batch of one step.

    Positives are the train edges at places step * batch_size .. of the epoch's permutation. A negative is
    the r-th item of the complement of its user's row, r uniform, keyed by the place in the epoch: one draw,
    exact at any density, no rejection. Candidates are min(num_candidates, I) items, every subset equally
    likely. With a ``pool`` of P items both are of these, and P stands for I.

    Raises:
        ValueError: a size is out of range, or the epoch has no such step.
    """
    num_steps = steps_per_epoch(graph.num_edges, batch_size)
    if not 0 <= step < num_steps:
        raise ValueError(f"step must lie in 0..{num_steps - 1}, got {step}")
    if num_candidates < 0:
        raise ValueError(f"num_candidates must be >= 0, got {num_candidates}")
    indptr, indices = read_only(graph.indptr), read_only(graph.indices)
    first = step * batch_size
    places = np.arange(first, min(first + batch_size, graph.num_edges), dtype=np.int64)
    users, items = graph.edges(permuted(derive(seed, Purpose.BATCHES, epoch), places, graph.num_edges))
    size = graph.num_items if pool is None else pool.items.size
    negatives = draw_negatives(
        indptr,
        indices,
        users,
        first,
        graph.num_users,
        size,
        np.empty(0, np.int64) if pool is None else pool.places,
        np.uint64(derive(seed, Purpose.NEGATIVES, epoch)),
    )
    candidates = draw_distinct(
        np.uint64(derive(seed, Purpose.CANDIDATES, epoch, step)), min(num_candidates, size), size
    )
    if pool is not None:
        negatives = np.where(negatives < 0, -1, pool.items[negatives])
        candidates = pool.items[candidates]
    return GlobalBatch(epoch, step, users, items, negatives, candidates)


def known_candidates(
    graph: Graph, users: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Bool [n, C]: where (user, candidate) is a train interaction; such cells are masked from losses.

    Args:
        graph: the train graph.
        users: user numbers [n].
        candidates: item numbers [C], all different.
    """
    indptr, indices = read_only(graph.indptr), read_only(graph.indices)
    return np.asarray(mark_known(indptr, indices, users, candidates, graph.num_users))


def slice_rows(batch: GlobalBatch, part: int, parts: int) -> GlobalBatch:
    """Share ``part`` of ``parts`` of the rows: contiguous, sizes within one of each other; candidates whole.

    A share is empty when there are more parts than rows before it.

    Raises:
        ValueError: part is outside 0..parts-1.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part must lie in 0..{parts - 1}, got {part}")
    rows = slice(part * batch.size // parts, (part + 1) * batch.size // parts)
    return replace(
        batch,
        users=batch.users[rows],
        items=batch.items[rows],
        negatives=batch.negatives[rows],
    )
