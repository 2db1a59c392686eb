"""Sums over rows in vectors against the same sums written down with numpy, at every width a row can have."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

from gnnmr_dist.models.vector_rows import largest, spread_row, sum_rows

SOURCES, EDGES = 9, 7


@numba.njit
def _sum(out: Any, v: Any, x: Any, row: Any, share: Any, source: Any, weight: Any, span: Any) -> None:
    sum_rows(out, v, x, row, share, source, weight, span)


@numba.njit
def _spread(
    grad: Any, v: Any, x: Any, to: Any, row: Any, share: Any, source: Any, weight: Any, dot: Any, span: Any
) -> Any:
    return spread_row(grad, v, x, to, row, share, source, weight, dot, span)


@numba.njit
def _largest(x: Any, least: Any) -> Any:
    return largest(x, least)


def _some(dtype: type, *shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("width", [1, 7, 8, 16, 23, 32, 64, 100, 128, 147])
def test_there_and_back(width: int, heads: int, dtype: type) -> None:
    x, grad = (_some(dtype, SOURCES, heads, width)[:, heads - 1] for _ in range(2))
    source = np.array([0, 3, 3, 8, 5, 2, 0])
    begin, end, base = span = (1, EDGES - 1, 1)
    weight, share, tolerance = _some(dtype, EDGES, heads)[:, 0], dtype(0.25), 50 * np.finfo(dtype).eps
    taken, out = source[begin:end], np.full((2, width), np.nan, dtype)
    _sum(out, 1, x, 4, share, source, weight, span)
    expected = share * x[4] + (weight[: end - base, None] * x[taken]).sum(axis=0)
    np.testing.assert_allclose(out[1], expected, rtol=tolerance, atol=tolerance)
    assert np.isnan(out[0]).all()

    to, dot = np.ones_like(x), np.ones(EDGES, dtype)
    own = _spread(grad, 2, x, to, 4, share, source, weight, dot, span)
    of_rows = np.ones_like(x)
    np.add.at(of_rows, taken, weight[: end - base, None] * grad[2])
    of_rows[4] += share * grad[2]
    np.testing.assert_allclose(to, of_rows, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dot[: end - base], 1 + x[taken] @ grad[2], rtol=tolerance, atol=tolerance)
    assert (dot[end - base :] == 1).all()
    np.testing.assert_allclose(own, x[4] @ grad[2], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("width", [5, 64])
def test_a_share_of_zero_reads_no_row(width: int) -> None:
    x = _some(np.float32, SOURCES, width)
    x[4] = np.nan
    out, source, weight = np.empty((1, width), np.float32), np.array([2]), np.ones(1, np.float32)
    _sum(out, 0, x, 4, np.float32(0), source, weight, (0, 1, 0))
    np.testing.assert_array_equal(out[0], x[2])
    to, grad = np.zeros_like(x), np.full((1, width), np.nan, np.float32)
    own = _spread(grad, 0, x, to, 4, np.float32(0), source, weight, np.zeros(1, np.float32), (0, 0, 0))
    assert own == 0
    assert not to.any()


def test_no_edges_and_no_sources() -> None:
    out = np.full((2, 3), np.nan, np.float32)
    none = np.empty(0, np.float32)
    _sum(out, 1, np.empty((0, 3), np.float32), 0, np.float32(0), none.astype(np.int64), none, (0, 0, 0))
    np.testing.assert_array_equal(out[1], 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for size in range(150):
        x = rng.normal(size=size).astype(dtype)
        assert _largest(x, dtype(-1e30)) == max([dtype(-1e30), *x])
        for place in range(0, size, 7):  # wherever it stands
            x[place] = 10
            assert _largest(x, dtype(-1)) == 10
            x[place] = -10
        x[rng.random(size) < 0.3] = np.nan
        assert _largest(x, dtype(-1)) == max([-1, *x[~np.isnan(x)]])


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, weight, source = np.ones((3, 4), np.float32), np.ones(2, np.float32), np.array([0, 1])
    rest = (0, np.float32(0), source)
    for out, rows, factor, name in (
        (np.ones((3, 4)), x, weight, "out"),
        (x, x, weight.astype(np.float64), "weight"),
        (np.ones((4, 3), np.float32).T, x, weight, "out"),
        (x, np.ones((3, 2, 2), np.float32), weight, "x"),
    ):
        with pytest.raises(TypingError, match=f"{name}: expected an array"):
            _sum(out, 0, rows, *rest, factor, (0, 2, 0))
    with pytest.raises(TypingError, match="one after the other"):
        _largest(np.ones(6, np.float32)[::2], np.float32(0))


def test_sources_of_any_width() -> None:
    x, weight, out = _some(np.float32, SOURCES, 5), np.ones(2, np.float32), np.empty((1, 5), np.float32)
    for kind in (np.int32, np.int64, np.uint64):
        _sum(out, 0, x, 0, np.float32(0), np.array([8, 1], kind), weight, (0, 2, 0))
        np.testing.assert_allclose(out[0], x[8] + x[1])
