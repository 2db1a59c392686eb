"""Full ranking: mask what each user has seen, then the exact top k of all items, in blocks of users.

Axes: n users asked for, b users of one block, I items, w items of one tile, d embedding size, k cut-off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gnnmr_dist.data.graph import Graph
from gnnmr_dist.top_k import TopK

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

PADDING = -1
"""Item number of positions left over where a user has fewer than k rankable items."""

POPULARITY_WEIGHT = 1e-6
"""What one train interaction of an item adds to every score: breaks ties, ranks for users without data."""

USERS_PER_BLOCK = 128
"""Users scored at once, at most. Measured: products of 64 to 128 rows are as fast as any."""

ITEMS_PER_TILE = 2048
"""Items scored at once for a block of users: 128 x 2048 scores are 1 MiB and stay in the cache."""

SCORES_PER_BLOCK = 1 << 24
"""Scores held at once where a scorer gives whole rows (64 MiB of float32)."""


@dataclass(frozen=True)
class ItemLists:
    """One list of items per row, a CSR without values: ``items[indptr[r]:indptr[r + 1]] - first_item``.

    ``indptr`` int64 [rows + 1]; ``items`` integers; ``first_item`` is the number of item 0 in ``items``,
    so that the users' rows of a memory-mapped graph serve as they are. Items of a row are unique and ascending.
    """

    indptr: npt.NDArray[np.integer]
    items: npt.NDArray[np.integer]
    first_item: int = 0

    @property
    def num_rows(self) -> int:
        """Number of lists."""
        return int(self.indptr.size) - 1

    def counts(self) -> Int64Array:
        """Length of every list, int64 [rows]."""
        return np.diff(self.indptr).astype(np.int64)

    def pairs(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """All (position in ``rows``, item) pairs of the lists ``rows`` [r], in order; each int64 [total]."""
        starts = self.indptr[rows].astype(np.int64)
        counts = self.indptr[rows + 1].astype(np.int64) - starts
        position = np.repeat(np.arange(rows.size), counts)
        before = np.cumsum(counts) - counts
        where = np.arange(position.size) + np.repeat(starts - before, counts)
        return position, self.items[where].astype(np.int64) - self.first_item

    def select(self, rows: Int64Array) -> ItemLists:
        """The lists ``rows`` [r], in that order, as lists 0..r-1."""
        position, items = self.pairs(rows)
        indptr = np.zeros(rows.size + 1, np.int64)
        np.cumsum(np.bincount(position, minlength=rows.size), out=indptr[1:])
        return ItemLists(indptr, items)


def item_lists(users: npt.NDArray[np.integer], items: npt.NDArray[np.integer], num_users: int) -> ItemLists:
    """The items of every user 0..num_users-1, ascending, from pairs (users[j], items[j]) in any order.

    Raises:
        ValueError: lengths differ, a user is out of range, or a pair stands twice.
    """
    if users.shape != items.shape:
        raise ValueError(f"{users.size} users but {items.size} items")
    if users.size and (users.min() < 0 or users.max() >= num_users):
        raise ValueError(f"user numbers must lie in 0..{num_users - 1}")
    order = np.lexsort((items, users))
    u, i = users[order], items[order]
    if bool(np.any((u[1:] == u[:-1]) & (i[1:] == i[:-1]))):
        raise ValueError("a user-item pair stands twice")
    indptr = np.zeros(num_users + 1, np.int64)
    np.cumsum(np.bincount(users, minlength=num_users), out=indptr[1:])
    return ItemLists(indptr, i.astype(np.int64))


def train_items(graph: Graph) -> ItemLists:
    """The train items of every user: the users' rows of the graph, not copied."""
    return ItemLists(graph.indptr[: graph.num_users + 1], graph.indices, graph.num_users)


def train_counts(graph: Graph) -> Int64Array:
    """Number of train interactions of every item (its popularity), int64 [I]."""
    return graph.degree()[graph.num_users :]


def popularity_offset(graph: Graph) -> Tensor:
    """Train counts x :data:`POPULARITY_WEIGHT`, float32 [I]: what every method adds to its scores."""
    return torch.from_numpy((train_counts(graph) * POPULARITY_WEIGHT).astype(np.float32))


class Scorer(Protocol):
    """Anything that scores all items for given users."""

    def scores(self, users: Int64Array) -> Tensor:
        """Scores of every item for ``users`` [n]: a new float32 [n, I], which the caller may overwrite."""
        ...


@dataclass(frozen=True)
class EmbeddingScorer:
    """score(u, i) = h_u . h_i + offset_i.

    ``user_embeddings`` [U, d], ``item_embeddings`` [I, d], ``item_offset`` [I] or None (for instance
    :func:`popularity_offset`), all on one device.
    """

    user_embeddings: Tensor
    item_embeddings: Tensor
    item_offset: Tensor | None = None

    def scores(self, users: Int64Array) -> Tensor:
        """Float32 [n, I]; the product is one matrix multiplication."""
        return (self._rows(users) @ self.item_embeddings.float().T).add_(self.offset)

    def tiles(self, users: Int64Array) -> Iterator[tuple[Tensor, Tensor]]:
        """The same a tile after the other: products [n, w], overwritten by the next, and the offset [w] to add."""
        rows = self._rows(users)
        room = rows.new_empty(rows.shape[0] * self.columns[0].shape[1])
        for columns, offset in zip(self.columns, self.offset.split(ITEMS_PER_TILE), strict=True):
            tile = room[: rows.shape[0] * columns.shape[1]].view(rows.shape[0], -1)
            yield torch.mm(rows, columns, out=tile), offset

    @cached_property
    def columns(self) -> list[Tensor]:
        """Items as columns, float32 [d, w] per tile, made once: few users times these is as fast as a product gets."""
        parts = self.item_embeddings.detach().split(ITEMS_PER_TILE)
        return [part.float().T.contiguous() for part in parts]

    @cached_property
    def offset(self) -> Tensor:
        """Float32 [I]; zeros where there is none."""
        if self.item_offset is None:
            return torch.zeros(self.item_embeddings.shape[0], device=self.item_embeddings.device)
        return self.item_offset.float()

    def _rows(self, users: Int64Array) -> Tensor:
        return self.user_embeddings.detach()[torch.from_numpy(users).to(self.user_embeddings.device)].float()


@dataclass(frozen=True)
class _Among:
    """A scorer's scores of some items, bool ``kept`` [I]; the others have -inf."""

    scorer: Scorer
    kept: Tensor

    def scores(self, users: Int64Array) -> Tensor:
        found = self.scorer.scores(users)
        return found.masked_fill_(~self.kept.to(found.device), -torch.inf)


def among(scorer: Scorer, kept: npt.NDArray[np.bool_]) -> Scorer:
    """The same scores, but only items ``kept`` [I] are ever ranked."""
    mask = torch.from_numpy(kept)
    if not isinstance(scorer, EmbeddingScorer):
        return _Among(scorer, mask)
    offset = scorer.offset.masked_fill(~mask.to(scorer.offset.device), -torch.inf)
    return replace(scorer, item_offset=offset)


def _tiled(scorer: Scorer) -> TypeGuard[EmbeddingScorer]:
    return isinstance(scorer, EmbeddingScorer) and scorer.item_embeddings.device.type == "cpu"


def users_at_once(scorer: Scorer, num_items: int) -> int:
    """Users to rank in one block: :data:`USERS_PER_BLOCK`, or fewer where whole rows of their scores are too many."""
    if _tiled(scorer):
        return USERS_PER_BLOCK
    return max(1, min(USERS_PER_BLOCK, SCORES_PER_BLOCK // num_items))


def rank_top_k(
    scorer: Scorer,
    users: Int64Array,
    seen: ItemLists,
    k: int,
    *,
    also_masked: ItemLists | None = None,
    block: int = USERS_PER_BLOCK,
) -> tuple[Int64Array, Float32Array]:
    """The k best unmasked items of each user, best first: items int64 [n, k], scores float32 [n, k].

    Exact over all I items; equal scores rank by smaller item number. Where a user has fewer than k rankable
    items the rest is :data:`PADDING` with score -inf; a score of -inf means "never recommend".

    Embeddings on the CPU are multiplied and ranked tile by tile (top_k.py); torch's threads each take whole blocks and
    multiply alone, so a score's bits depend on the users of its block, not on threads or workers. Other scorers give
    whole rows: memory is ``block`` x I scores.

    Args:
        scorer: gives the scores.
        users: user numbers [n]; row u of ``seen`` belongs to user u.
        seen: each user's train items, masked.
        k: length of the lists.
        also_masked: more items to mask per user (validation items at test time), or None.
        block: users scored at once (:func:`users_at_once`).

    Raises:
        ValueError: k or block is not positive, or a score is NaN.
    """
    if k <= 0 or block <= 0:
        raise ValueError(f"k and block must be positive, got {k} and {block}")
    items = np.full((users.size, k), PADDING, np.int64)
    values = np.full((users.size, k), -np.inf, np.float32)
    masks = [seen] if also_masked is None else [seen, also_masked]

    def rank(start: int) -> None:
        part = slice(start, start + block)
        found, scores = _rank_block(scorer, users[part], masks, k)
        items[part, : found.shape[1]], values[part, : found.shape[1]] = found, scores

    with _map_blocks(scorer) as map_blocks:
        for _ in map_blocks(rank, range(0, users.size, block)):
            pass
    return items, values


@contextmanager
def _map_blocks(scorer: Scorer) -> Iterator[Callable[..., Iterable[None]]]:
    """A ``map`` over blocks: on as many threads as torch has, each of which multiplies alone, where there are tiles."""
    if not _tiled(scorer):
        yield map
        return
    _ = scorer.columns, scorer.offset  # made here: threads would each make their own
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if threads == 1:
            yield map
            return
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def _rank_block(
    scorer: Scorer, users: Int64Array, masks: Sequence[ItemLists], k: int
) -> tuple[Int64Array, Float32Array]:
    """Items and scores of one block's users, [b, min(k, I)] each, as :func:`rank_top_k` gives them."""
    tiles: Iterable[tuple[Any, Any]]
    if _tiled(scorer):
        num_items, tiles = scorer.offset.shape[0], scorer.tiles(users)
    else:
        scores = scorer.scores(users)
        if scores.device.type != "cpu":
            return _rank_rows(scores, users, masks, k)
        num_items, tiles = scores.shape[1], [(scores.float().contiguous(), torch.zeros(scores.shape[1]))]
    top, first = TopK(k, num_items, *_masked(masks, users)), 0
    for tile, offset in tiles:
        top.offer(tile.numpy(), offset.numpy(), first)
        first += offset.shape[0]
    return top.best()


def _masked(masks: Sequence[ItemLists], users: Int64Array) -> tuple[Int64Array, Int64Array]:
    """The masked items of every user in one ascending list, as ``indptr`` [b + 1] and ``items``."""
    position, items = (np.concatenate(parts) for parts in zip(*(m.pairs(users) for m in masks), strict=True))
    indptr = np.zeros(users.size + 1, np.int64)
    np.cumsum(np.bincount(position, minlength=users.size), out=indptr[1:])
    return indptr, items if len(masks) == 1 else items[np.lexsort((items, position))]


def _rank_rows(
    scores: Tensor, users: Int64Array, masks: Sequence[ItemLists], k: int
) -> tuple[Int64Array, Float32Array]:
    """As :func:`_rank_block`, from scores [b, I] on any device, which are overwritten, with torch's operations."""
    for mask in masks:
        _mask(scores, mask, users)
    best, found = _top_k(scores, min(k, scores.shape[1]))
    values, items = best.cpu().numpy(), found.cpu().numpy()
    items[np.isneginf(values)] = PADDING
    return items, values


def _mask(scores: Tensor, lists: ItemLists, users: Int64Array) -> None:
    rows, items = (torch.from_numpy(a).to(scores.device) for a in lists.pairs(users))
    scores[rows, items] = -torch.inf


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and items [b, k], by falling score, then rising item number.

    Which of several items that tie at the cut ``torch.topk`` keeps is unspecified: one place beyond the cut
    shows such rows, and only they are redone.
    """
    values, items = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    if bool(values.isnan().any()):
        raise ValueError("a score is NaN")
    if values.shape[1] > k:
        tied = (values[:, k] == values[:, k - 1]) & ~values[:, k].isneginf()
        values, items = values[:, :k], items[:, :k]
        if bool(tied.any()):
            items[tied] = _unique_keys(scores[tied]).topk(k, dim=1).indices
            values[tied] = scores[tied].gather(1, items[tied])
    items = items.sort(dim=1).values
    values, order = scores.gather(1, items).sort(dim=1, descending=True, stable=True)
    return values, items.gather(1, order)


def _unique_keys(scores: Tensor) -> Tensor:
    """Int64 [b, I], all different within a row: ordered as the scores, and ties by smaller item number."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0, which equals 0.0, into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    item = torch.arange(scores.shape[1], device=scores.device)
    return (ordered.long() << 32) - item
