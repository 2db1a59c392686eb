"""Counter-based randomness: keys, bounds and the permutation."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from gnnmr_dist.randomness import Purpose, absorb, bounded, derive, generator, mix64, permuted

seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.lists(st.integers(0, 2**40), max_size=4))
def test_derive_equals_absorbing_word_by_word(seed: int, words: list[int]) -> None:
    state = mix64(np.uint64(seed))
    for word in (int(Purpose.NEGATIVES), *words):
        state = absorb(np.uint64(state), np.uint64(word))
    assert int(state) == derive(seed, Purpose.NEGATIVES, *words)


def test_keys_are_pinned() -> None:
    """A changed key changes every published number; SplitMix64 of 0x9E37... is its published first output."""
    assert int(mix64(np.uint64(0x9E3779B97F4A7C15))) == 0xE220A8397B1DCDAF
    assert derive(7, Purpose.BATCHES, 1, 2) == 10057749456696128878


def test_purposes_and_order_of_words_give_different_keys() -> None:
    keys = {derive(1, purpose, a, b) for purpose in Purpose for a in range(8) for b in range(8)}
    assert len(keys) == len(Purpose) * 64


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**32 - 1))
def test_bounded_is_the_high_word_of_the_product(word: int, n: int) -> None:
    assert int(bounded(np.uint64(word), np.uint64(n))) == (word * n) >> 64


def test_bounded_is_uniform() -> None:
    counts = np.bincount(
        [bounded(np.uint64(mix64(np.uint64(j))), np.uint64(7)) for j in range(14_000)], minlength=7
    )
    assert chisquare(counts).pvalue > 1e-3


@given(seeds, st.integers(1, 400))
def test_permuted_is_a_bijection(key: int, n: int) -> None:
    assert np.array_equal(np.sort(permuted(key, np.arange(n), n)), np.arange(n))


def test_permuted_sends_a_place_everywhere_alike() -> None:
    n = 40
    images = np.stack([permuted(derive(3, Purpose.BATCHES, e), np.arange(n), n) for e in range(4000)])
    for place in (0, 17, 39):
        assert chisquare(np.bincount(images[:, place], minlength=n)).pvalue > 1e-3
    assert abs(np.mean(np.abs(np.diff(images, axis=1)) == 1) - 2 / n) < 0.003  # neighbours stay no neighbours


@pytest.mark.parametrize(("positions", "n"), [([0], 0), ([5], 5), ([-1], 5)])
def test_permuted_refuses_places_outside(positions: list[int], n: int) -> None:
    with pytest.raises(ValueError, match="positions must lie in"):
        permuted(1, np.array(positions), n)


def test_generator_repeats_in_another_process() -> None:
    code = (
        "from gnnmr_dist.randomness import *\n"
        "print(derive(5, Purpose.SPLIT, 3), generator(5, Purpose.SPLIT, 3).integers(1 << 60))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = (derive(5, Purpose.SPLIT, 3), generator(5, Purpose.SPLIT, 3).integers(1 << 60))
    assert out.split() == [str(value) for value in here]
