"""Counter-based randomness: every draw is a pure function of (run seed, purpose, epoch, step, node...).

Nothing here has state, so no draw depends on the number of workers, on threads or on what ran before.
The mixing function is SplitMix64's finaliser (Steele, Lea and Flood 2014), applied once per word absorbed.
"""

from __future__ import annotations

from enum import IntEnum

import numba
import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


class Purpose(IntEnum):
    """What a stream of random numbers is for; two purposes never share a stream."""

    INITIALISATION = 1
    BATCHES = 2
    NEGATIVES = 3
    CANDIDATES = 4
    NEIGHBOURS = 5
    SPLIT = 6
    SYNTHETIC = 7
    DROPOUT = 8
    SWEEP = 9
    PRETRAINING = 10


@numba.njit(inline="always", cache=True)
def mix64(x: np.uint64) -> np.uint64:
    """SplitMix64 finaliser: a bijection of 64-bit words whose output bits look independent."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(inline="always", cache=True)
def absorb(state: np.uint64, word: np.uint64) -> np.uint64:
    """The state after one more word; order matters, so (a, b) and (b, a) give different streams."""
    mixed: np.uint64 = mix64((np.uint64(state) + np.uint64(0x9E3779B97F4A7C15)) ^ mix64(np.uint64(word)))
    return mixed


@numba.njit(inline="always", cache=True)
def bounded(word: np.uint64, n: np.uint64) -> np.int64:
    """A 64-bit word mapped onto 0..n-1, n below 2^32, by multiply-shift (bias below n / 2^32 relative 2^-32)."""
    high = np.uint64(word) >> np.uint64(32)
    low = np.uint64(word) & np.uint64(0xFFFFFFFF)
    n = np.uint64(n)
    return np.int64((high * n + ((low * n) >> np.uint64(32))) >> np.uint64(32))


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def derive(seed: int, purpose: Purpose, *words: int) -> int:
    """A 64-bit key for one purpose and place, e.g. ``derive(seed, Purpose.NEGATIVES, epoch)``.

    Equal to absorbing purpose and words one by one, so compiled code may go on from the key with :func:`absorb`.
    """
    state = _mix(seed & _MASK)
    for word in (int(purpose), *words):
        state = _mix(((state + _GOLDEN) & _MASK) ^ _mix(word & _MASK))
    return state


def generator(seed: int, purpose: Purpose, *words: int) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) for bulk draws of one purpose."""
    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, *words)))


@numba.njit(cache=True)
def _permuted(key: np.uint64, positions: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    half = 1
    while (1 << (2 * half)) < n:
        half += 1
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    out = np.empty(positions.size, np.int64)
    for j in range(positions.size):
        x = np.uint64(positions[j])
        while True:
            left, right = x >> shift, x & mask
            for r in range(6):
                left, right = right, left ^ (absorb(key, (right << np.uint64(3)) | np.uint64(r)) & mask)
            x = (left << shift) | right
            if x < np.uint64(n):
                break
        out[j] = np.int64(x)
    return out


def permuted(key: int, positions: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Where a pseudo-random permutation of 0..n-1 sends ``positions`` [k], without building it.

    A six-round Feistel network with cycle walking (Black and Rogaway 2002): O(1) memory, so a step's share of
    a shuffled epoch of 10^8 edges costs only its own rows.

    Raises:
        ValueError: n is not positive, or a position is outside 0..n-1.
    """
    if n <= 0 or (positions.size and (positions.min() < 0 or positions.max() >= n)):
        raise ValueError(f"positions must lie in 0..{n - 1}")
    return np.asarray(_permuted(np.uint64(key), positions.astype(np.int64), n))
