"""The study's statistics: pure functions on arrays. Axes: S seeds, U users, m comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

FloatArray = npt.NDArray[np.float64]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divided by S - 1) of [S] values; NaN deviation for one value."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


def paired_t(one: FloatArray, other: FloatArray) -> float:
    """Two-sided p of the paired t-test that users' mean difference is 0: t = mean / (s / sqrt U), U - 1 degrees.

    The tables report means over users, and this test is about means: by the central limit theorem it holds for the
    skewed, tied values of Recall and NDCG with hundreds of users. (Wilcoxon's test is about the symmetry of the
    differences instead.) Equal arrays give 1; fewer than two users NaN.

    Args:
        one: value of each user [U].
        other: of the same users in the same order [U].
    """
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    if difference.size < 2:
        return math.nan
    if not difference.any():
        return 1.0
    deviation = float(difference.std(ddof=1))
    if deviation == 0.0:
        return 0.0
    t = float(difference.mean()) / (deviation / math.sqrt(difference.size))
    return float(2 * stats.t.sf(abs(t), difference.size - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values [m]: p sorted ascending, max over j <= i of (m - j) p_j, j from 0, at most 1.

    Below alpha = rejected with a family-wise error of at most alpha, whatever the dependence of the tests.
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [1.0] * len(p), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean of [S] values: mean -+ t s / sqrt S, S - 1 degrees; NaN for one value."""
    mean, deviation = mean_and_deviation(values)
    if len(values) < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half


def bootstrap_interval(
    values: FloatArray, level: float = 0.95, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean of [U] values: users drawn with replacement ``draws`` times (Efron 1979)."""
    array, random = np.asarray(values, np.float64), np.random.default_rng(seed)
    if array.size < 2:
        return math.nan, math.nan
    means = [array[random.integers(0, array.size, array.size)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
