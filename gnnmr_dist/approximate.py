"""An approximate index for recommending among very many items: FAISS's inverted lists, searched in part.

Needs the extra ``approximate`` (faiss-cpu), imported only here and only when asked for. Axes: n users asked for,
I items, d embedding size, k places.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch

from gnnmr_dist.errors import InputError
from gnnmr_dist.ranking import PADDING, EmbeddingScorer, Float32Array, Int64Array, ItemLists, rank_top_k

SAMPLE = 256
"""Users whose exact lists measure the recall."""

ITEMS_PER_LIST = 39
"""Fewer items per inverted list than this make poor lists (FAISS's own advice)."""


class ApproximateIndex:
    """The items of a scorer in about 4 sqrt(I) inverted lists, of which a search reads the most promising ones.

    ``recall`` is the mean share of the exact lists that the lists found here share, over sampled users; ``probes`` of
    ``num_lists`` inverted lists are read per user.
    """

    def __init__(
        self, scorer: EmbeddingScorer, users: Int64Array, seen: ItemLists, k: int, target: float
    ) -> None:
        """Build it, then read ever more lists until the recall of a sample of ``users`` is at least ``target``.

        Raises:
            InputError: FAISS is not installed, or ``target`` is not in 0..1.
        """
        if not 0 < target <= 1:
            raise InputError(f"approximate: expected a recall above 0 and up to 1, got {target:g}")
        faiss = _faiss()
        self._scorer, self._seen, self._k = scorer, seen, k
        # One more dimension carries the offset: (h_u, 1) . (h_i, offset_i).
        items = torch.cat([scorer.item_embeddings.float(), scorer.offset.unsqueeze(1)], dim=1).cpu().numpy()
        count, size = items.shape
        self.num_lists = max(1, min(round(4 * count**0.5), count // ITEMS_PER_LIST))
        faiss.omp_set_num_threads(torch.get_num_threads())
        self._index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(size), size, self.num_lists, faiss.METRIC_INNER_PRODUCT
        )
        self._index.cp.max_points_per_centroid = 2 * ITEMS_PER_LIST
        self._index.train(items)
        self._index.add(items)
        self.probes, self.recall = 0, 0.0
        self._reach(users[np.linspace(0, users.size - 1, min(SAMPLE, users.size)).astype(np.int64)], target)

    def _reach(self, sample: Int64Array, target: float) -> None:
        exact, _ = rank_top_k(self._scorer, sample, self._seen, self._k)
        while self.recall < target and self.probes < self.num_lists:
            self.probes = min(max(1, 2 * self.probes), self.num_lists)
            self._index.nprobe = self.probes
            self.recall = list_recall(self.rank(sample)[0], exact)

    def rank(self, users: Int64Array) -> tuple[Int64Array, Float32Array]:
        """As :func:`~gnnmr_dist.ranking.rank_top_k`, but some of the k best items of a user may be missing.

        As many more items are fetched as the user has seen. Where the lists read hold too few, the user is ranked
        exactly: no list is shorter than the exact one.
        """
        items = np.full((users.size, self._k), PADDING, np.int64)
        scores = np.full((users.size, self._k), -np.inf, np.float32)
        number_seen = self._seen.indptr[users + 1] - self._seen.indptr[users]
        wanted = np.minimum(self._k + number_seen, self._index.ntotal)
        fetch = np.minimum(2 ** np.ceil(np.log2(wanted)).astype(np.int64), self._index.ntotal)
        for width in np.unique(fetch):
            rows = np.flatnonzero(fetch == width)
            found, values = self._search(users[rows], int(width))
            items[rows, : found.shape[1]], scores[rows, : found.shape[1]] = found, values
        rankable = np.minimum(self._k, self._index.ntotal - number_seen)
        short = np.flatnonzero((items != PADDING).sum(axis=1) < rankable)
        if short.size:
            items[short], scores[short] = rank_top_k(self._scorer, users[short], self._seen, self._k)
        return items, scores

    def _search(self, users: Int64Array, width: int) -> tuple[Int64Array, Float32Array]:
        """The unseen among the ``width`` best items that the index finds, at most k, best first."""
        vectors = self._scorer.user_embeddings[torch.from_numpy(users)].float().cpu()
        asked = torch.cat([vectors, torch.ones(users.size, 1)], dim=1).numpy()
        values, items = self._index.search(asked, width)
        row, seen = self._seen.pairs(users)
        place = np.arange(users.size)[:, None] * self._index.ntotal + items
        values[(items < 0) | np.isin(place, row * self._index.ntotal + seen)] = -np.inf
        order = np.lexsort((items, -values), axis=1)[:, : self._k]
        items, values = np.take_along_axis(items, order, axis=1), np.take_along_axis(values, order, axis=1)
        return np.where(np.isneginf(values), PADDING, items), values


def list_recall(found: Int64Array, exact: Int64Array) -> float:
    """Mean over users of |found and exact| / |exact|, for lists [n, k]; users without an exact list do not count."""
    there = (found[:, :, None] == exact[:, None, :]).any(axis=1) & (exact != PADDING)
    total = (exact != PADDING).sum(axis=1)
    return float((there.sum(axis=1)[total > 0] / total[total > 0]).mean()) if total.any() else 1.0


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise InputError(
            "approximate: expected faiss-cpu to be installed (pip install 'gnnmr-dist[approximate]'), got none"
        ) from None
    module: ModuleType = faiss
    return module
