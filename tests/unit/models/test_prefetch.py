"""Rows asked for ahead: nothing changes, whatever is asked for; attention's results are in test_layers.py."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from gnnmr_dist.models.prefetch import _per_line, fetch_row, fetch_row_to_write


@numba.njit
def _all_rows(x: Any) -> int:
    for row in range(x.shape[0]):
        fetch_row(x, row)
        fetch_row_to_write(x, row)
    return _per_line(x)


@pytest.mark.parametrize(("dtype", "per_line"), [(np.float32, 16), (np.float64, 8)])
@pytest.mark.parametrize("shape", [(0, 1, 4), (5, 1, 64), (7, 3, 5)])
def test_it_changes_nothing(shape: tuple[int, ...], dtype: type, per_line: int) -> None:
    x = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    before = x.copy()
    assert _all_rows(x) == per_line
    np.testing.assert_array_equal(x, before)


def test_the_compiled_code_has_the_instructions() -> None:
    _all_rows(np.zeros((1, 1, 16), np.float32))
    assert all("prefetch" in code for code in _all_rows.inspect_llvm().values())
