"""Exact full ranking against the bare matrix products and against FAISS's exact index, side by side on 1 and 2 threads.

Headline: time of the bare products / ours, the lower of the thread counts. The bare products are the fastest of several
shapes and of two ways to use threads; they only overwrite one buffer. FAISS is IndexFlatIP of faiss-cpu.

    python benchmarks/bench_ranking.py [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from measure import Report, parser, ratio, side_by_side, spread, use_threads
from torch import Tensor

from gnnmr_dist.ranking import (
    ITEMS_PER_TILE,
    USERS_PER_BLOCK,
    EmbeddingScorer,
    ItemLists,
    rank_top_k,
)

try:
    import faiss
except ImportError:
    raise SystemExit("error: bench_ranking compares with FAISS: pip install faiss-cpu") from None

DIM, K, SEEN = 128, 50, 20
SHAPES = ((USERS_PER_BLOCK, ITEMS_PER_TILE), (64, 2048), (1024, 1024), (1024, 2048))
"""Users x items of one bare product."""


@dataclass(frozen=True)
class Problem:
    """Random vectors, an offset, and seen items."""

    users: Tensor
    items: Tensor
    offset: Tensor
    seen: ItemLists

    @property
    def flops(self) -> float:
        return 2.0 * self.users.shape[0] * self.items.shape[0] * DIM


def make_problem(num_users: int, num_items: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, DIM, generator=generator) for n in (num_users, num_items))
    offset = torch.rand(num_items, generator=generator) * 1e-3
    gaps = np.random.default_rng(0).integers(1, num_items // SEEN, (num_users, SEEN))
    return Problem(
        users, items, offset, ItemLists(np.arange(num_users + 1) * SEEN, np.cumsum(gaps, axis=1).ravel() - 1)
    )


def bare_products(users: Tensor, columns: list[Tensor], rows: int, threads: int, alone: bool) -> None:
    """All scores, each tile over the last; ``alone``: every thread multiplies by itself, else together on each tile.

    ``columns``: the items' tiles [d, w], each in one piece of memory.
    """

    def block(start: int) -> None:
        part = users[start : start + rows]
        room = torch.empty(part.shape[0] * columns[0].shape[1])
        for some in columns:
            torch.mm(part, some, out=room[: part.shape[0] * some.shape[1]].view(part.shape[0], -1))

    starts = range(0, users.shape[0], rows)
    if not alone or threads == 1:
        for start in starts:
            block(start)
        return
    torch.set_num_threads(1)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(block, starts))
    torch.set_num_threads(threads)


def fastest_products(problem: Problem, threads: int) -> tuple[Callable[[], None], str]:
    """The best way found to compute all scores, and what it is."""
    found, some = [], problem.users[:2048]
    for rows, width in SHAPES:
        columns = [part.T.contiguous() for part in problem.items.split(width)]
        for alone in (False, True)[: min(threads, 2)]:
            times = []
            for _ in range(3):
                started = time.perf_counter()
                bare_products(some, columns, rows, threads, alone)
                times.append(time.perf_counter() - started)
            found.append((min(times), rows, width, alone))
    _, rows, width, alone = min(found)
    name = f"{rows} x {width}" + ("" if threads == 1 else ", each thread alone" if alone else ", together")
    columns = [part.T.contiguous() for part in problem.items.split(width)]
    return lambda: bare_products(problem.users, columns, rows, threads, alone), name


def topk_of_rows(problem: Problem) -> None:
    """What two lines of torch do: whole rows of scores, then torch.topk."""
    for some in problem.users.split(USERS_PER_BLOCK):
        torch.topk(some @ problem.items.T, K, dim=1)


def sides_of(problem: Problem, bare: Callable[[], None], threads: int) -> dict[str, Callable[[], Any]]:
    everyone = np.arange(problem.users.shape[0])
    nothing = ItemLists(np.zeros(everyone.size + 1, np.int64), np.zeros(0, np.int64))
    plain = EmbeddingScorer(problem.users, problem.items)
    fallback = EmbeddingScorer(problem.users, problem.items, problem.offset)
    index = faiss.IndexFlatIP(DIM)
    index.add(problem.items.numpy())
    faiss.omp_set_num_threads(threads)
    vectors = problem.users.numpy()
    return {
        "bare products": bare,
        "ours": lambda: rank_top_k(plain, everyone, nothing, K),
        "ours, seen items masked, offset": lambda: rank_top_k(fallback, everyone, problem.seen, K),
        "FAISS IndexFlatIP": lambda: index.search(vectors, K),
        "torch: rows, then topk": lambda: topk_of_rows(problem),
    }


def compare_lists(problem: Problem, sides: dict[str, Callable[[], Any]], report: Report) -> None:
    """Our lists and FAISS's differ at most where two scores are equal up to rounding."""
    items, scores = sides["ours"]()
    other_scores, other_items = sides["FAISS IndexFlatIP"]()
    np.testing.assert_allclose(scores, other_scores, rtol=1e-5)
    equal = float((items == other_items).mean())
    assert equal > 0.999, f"only {equal:.2%} of the places have the same item"
    report.say(
        f"Lists: {equal:.4%} of {items.size} places have FAISS's item; every score agrees within 1e-5 relative."
    )


def measure(problem: Problem, threads: int, options: argparse.Namespace, report: Report) -> float:
    """One table; bare / ours."""
    use_threads(threads)
    bare, shape = fastest_products(problem, threads)
    sides = sides_of(problem, bare, threads)
    if threads == 1:
        compare_lists(problem, sides, report)
    found = side_by_side({n: lambda s=s: s() and None for n, s in sides.items()}, rounds=options.rounds)
    num_users = problem.users.shape[0]
    report.say()
    report.say(f"{threads} thread{'s' * (threads > 1)}; bare products in {shape}:")
    rows = [
        (
            name,
            spread(times),
            f"{num_users / float(np.median(times)):,.0f}",
            f"{problem.flops / float(np.median(times)) / 1e9:.0f}",
            f"{ratio(found['bare products'], times):.3f}",
        )
        for name, times in found.items()
    ]
    report.table(("side", "seconds: median (least to largest)", "users/s", "GFLOP/s", "bare / side"), rows)
    report.say(f"FAISS / ours: {ratio(found['FAISS IndexFlatIP'], found['ours']):.3f}.")
    return ratio(found["bare products"], found["ours"])


def once_in_full(options: argparse.Namespace, report: Report) -> None:
    """10^5 users x 10^5 items, each side once."""
    problem = make_problem(100_000, 100_000)
    threads = 2
    use_threads(threads)
    bare, _ = fastest_products(problem, threads)
    sides = sides_of(problem, bare, threads)
    for name in ("torch: rows, then topk", "ours, seen items masked, offset"):
        sides.pop(name)
    found = side_by_side({n: lambda s=s: s() and None for n, s in sides.items()}, rounds=1, warm_up=0)
    report.say()
    report.say("100,000 users x 100,000 items, once, 2 threads:")
    report.table(
        ("side", "seconds", "users/s"),
        [(name, f"{t[0]:.2f}", f"{100_000 / t[0]:,.0f}") for name, t in found.items()],
    )


def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("ranking", "Ranking: exact top 50 of all items", options)
    num_users, num_items = (2_000, 20_000) if options.quick else (5_000, 100_000)
    report.say(f"{num_users:,} users x {num_items:,} items, d = {DIM}, top {K}; {options.rounds} rounds.")
    problem = make_problem(num_users, num_items)
    headline = min(measure(problem, threads, options, report) for threads in sorted({1, 2, options.threads}))
    if not options.quick:
        once_in_full(options, report)
    report.close(headline)


if __name__ == "__main__":
    main()
