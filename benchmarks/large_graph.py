"""A large data set in the on-disk format, for benchmarks of scale: bounded memory, the same for the same seed.

    python benchmarks/large_graph.py --edges 10000000 --output DIR [--users N] [--items N] [--dims 64 32] [--seed 0]

Items are chosen by popularity (the item of rank x with density x^-0.8), users' degrees are log-normal, no pair
stands twice. ``edges`` counts train pairs; each user has one valid and one test pair besides. Features are noise:
there is nothing to learn in them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnmr_dist.data.scratch import blocks, scratch
from gnnmr_dist.data.writer import ModalityData, write_dataset
from gnnmr_dist.errors import InputError
from gnnmr_dist.randomness import Purpose, absorb, derive, generator, mix64
from gnnmr_dist.storage import Address

IntArray = npt.NDArray[np.integer]

MISSING = 0.05  # share of the items without a value, per modality
DEGREES, ORDER, DRAWS, FEATURES = range(4)  # streams of random numbers
THREADS = 2


def large_dataset(
    output: Address,
    *,
    edges: int,
    users: int | None = None,
    items: int | None = None,
    dims: Sequence[int] = (64, 32),
    dtype: str = "float16",
    seed: int = 0,
) -> str:
    """Write a data set with ``edges`` train pairs and a dense modality of each of ``dims``; return its digest.

    By default there are edges / 40 users and a quarter as many items. Memory follows users and items;
    pairs and features lie in scratch files (``TMPDIR``) until they are written.

    Raises:
        InputError: more than a quarter of all pairs were asked for, fewer than one per user, or the output has files.
    """
    num_users = users or max(edges // 40, 100)
    num_items = items or max(num_users // 4, 200)
    if not num_users <= edges <= num_users * (num_items // 4):
        raise InputError(f"--edges: expected {num_users} to {num_users * (num_items // 4)}, got {edges}")
    degree = _degrees(edges, num_users, num_items // 2, seed)
    splits = _pairs(degree, num_items, seed)
    return write_dataset(
        output,
        name=f"large-{edges}",
        users=pa.table({"id": np.arange(num_users)}),
        items=pa.table({"id": np.arange(num_items)}),
        splits=splits,
        modalities=[_features(m, num_items, dim, dtype, seed) for m, dim in enumerate(dims)],
        provenance={
            "source": "benchmarks/large_graph.py",
            "arguments": {"edges": edges, "users": num_users, "items": num_items, "seed": seed},
        },
    )


def _degrees(edges: int, num_users: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Train pairs of each user [U]: log-normal, 1..most, exactly ``edges`` in sum."""
    weight = np.exp(generator(seed, Purpose.SYNTHETIC, DEGREES).standard_normal(num_users))
    degree = np.minimum(1 + np.floor((edges - num_users) / weight.sum() * weight).astype(np.int64), most)
    while left := edges - int(degree.sum()):
        room = np.flatnonzero(degree < most)[:left]
        degree[room] = np.minimum(degree[room] + max(1, left // room.size), most)
    return degree


def _pairs(degree: npt.NDArray[np.int64], num_items: int, seed: int) -> dict[str, pa.Table]:
    num_users, edges = degree.size, int(degree.sum())
    users, items = scratch(edges, np.int32), scratch(edges, np.int32)
    held = scratch((2, num_users), np.int32)
    indptr = np.concatenate([[0], np.cumsum(degree)])
    item_of_rank = generator(seed, Purpose.SYNTHETIC, ORDER).permutation(num_items)
    key = np.uint64(derive(seed, Purpose.SYNTHETIC, DRAWS))

    def draw(part: slice) -> None:
        _draw_rows(part.start, part.stop, indptr, item_of_rank, key, users, items, held)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(draw, blocks(num_users, max(1, min(num_users // 16, 1 << 16)))))
    everyone = np.arange(num_users, dtype=np.int32)
    return {
        "train": pa.table({"user": users, "item": items}),
        "valid": pa.table({"user": everyone, "item": held[0]}),
        "test": pa.table({"user": everyone, "item": held[1]}),
    }


@numba.njit(nogil=True, cache=True)
def _draw_rows(
    first: int,
    last: int,
    indptr: IntArray,
    item_of_rank: IntArray,
    key: np.uint64,
    users: IntArray,
    items: IntArray,
    held: IntArray,
) -> None:
    """Distinct items of users first..last-1: their rows of ``items``, ascending, and one per held-out split."""
    num_items = item_of_rank.size
    span = float(num_items + 1) ** 0.2 - 1.0
    owner = np.full(num_items, -1, np.int64)  # the last user who drew the item of each rank
    for user in range(first, last):
        begin, end = indptr[user], indptr[user + 1]
        state = absorb(key, np.uint64(user))
        draws = 0
        for place in range(begin, end + 2):
            for _ in range(8):
                draws += 1
                word = mix64(state + np.uint64(draws) * np.uint64(0x9E3779B97F4A7C15))
                root = 1.0 + span * (float(word >> np.uint64(11)) * 2.0**-53)
                rank = min(np.int64(root * root * root * root * root) - 1, num_items - 1)
                if owner[rank] != user:
                    break
            while owner[rank] == user:  # unlucky so often: the next item down the ranks
                rank = (rank + 1) % num_items
            owner[rank] = user
            if place < end:
                users[place], items[place] = user, item_of_rank[rank]
            else:
                held[place - end, user] = item_of_rank[rank]
        items[begin:end].sort()


def _features(number: int, num_items: int, dim: int, dtype: str, seed: int) -> ModalityData:
    """Normal noise of length about 1, a share of the rows missing."""
    values = scratch((num_items, dim), dtype)
    present = generator(seed, Purpose.SYNTHETIC, FEATURES, number).random(num_items) >= MISSING
    present[0] = True
    for position, block in enumerate(blocks(num_items, 1 << 16)):
        noise = generator(seed, Purpose.SYNTHETIC, FEATURES, number, position)
        raw = noise.standard_normal((block.stop - block.start, dim), np.float32)
        values[block] = raw * np.float32(dim**-0.5) * present[block, None]
    return ModalityData(f"m{number}", "dense", dim, present, values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="data set to write: a path or a URI")
    parser.add_argument("--edges", type=int, required=True, help="train pairs")
    parser.add_argument("--users", type=int, help="users [edges / 40]")
    parser.add_argument("--items", type=int, help="items [users / 4]")
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 32], help="dim of each modality [64 32]")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the features")
    parser.add_argument("--seed", type=int, default=0, help="seed [0]")
    print(large_dataset(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
