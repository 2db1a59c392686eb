"""The study's statistics against values worked out by hand and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from study.significance import bootstrap_interval, holm, mean_and_deviation, paired_t, t_interval


def test_mean_and_deviation_by_hand() -> None:
    mean, deviation = mean_and_deviation([0.1, 0.2, 0.6])
    assert mean == pytest.approx(0.3)
    assert deviation == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert math.isnan(mean_and_deviation([0.5])[1])


def test_paired_t_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, s 1, t = 2 sqrt 3 with 2 degrees, whose cdf is 1/2 + t / (2 sqrt(2 + t^2)).
    t = 2 * math.sqrt(3)
    by_hand = 2 * (0.5 - t / (2 * math.sqrt(2 + t * t)))
    assert paired_t(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(by_hand)


def test_paired_t_agrees_with_scipy_and_pairs() -> None:
    random = np.random.default_rng(3)
    one = random.random(50)
    other = one + 0.1 * random.standard_normal(50) + 0.02
    assert paired_t(one, other) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert paired_t(one, other) != pytest.approx(paired_t(one, other[::-1]), rel=0.1)


def test_paired_t_at_the_edges() -> None:
    same = np.array([0.2, 0.4])
    assert paired_t(same, same) == 1.0
    assert paired_t(same, same + 1) < 1e-9
    assert math.isnan(paired_t(np.array([1.0]), np.array([0.0])))


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03, .04: times 4, 3, 2, 1 = .04, .06, .06, .04; then never below the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_t_interval_by_hand() -> None:
    # Two values: mean 2, s = sqrt 2, t of one degree at .975 is tan(.475 pi) = 12.7062.
    low, high = t_interval([1.0, 3.0])
    half = math.tan(0.475 * math.pi) * math.sqrt(2) / math.sqrt(2)
    assert (low, high) == pytest.approx((2 - half, 2 + half))
    assert all(map(math.isnan, t_interval([1.0])))


def test_bootstrap_interval_covers_repeats_and_follows_the_spread() -> None:
    values = np.random.default_rng(0).standard_normal(400) + 0.2
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)  # the normal approximation
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(np.full(9, 0.5)) == (0.5, 0.5)
    assert math.isnan(bootstrap_interval(np.array([1.0]))[0])
