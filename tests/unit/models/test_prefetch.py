"""Rows asked for ahead: nothing changes, and the instructions are there; what the loops compute is tested with them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from gnnmr_dist.models.prefetch import ask_to_read, ask_to_write


@numba.njit
def _all_rows(x: Any) -> None:
    for row in range(x.shape[0]):
        ask_to_read(x, row)
        ask_to_write(x, row)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 4), (5, 64), (1, 1, 4), (7, 3, 5)])
def test_it_changes_nothing(shape: tuple[int, ...], dtype: type) -> None:
    x = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    before = x.copy()
    _all_rows(x)
    np.testing.assert_array_equal(x, before)


def test_the_compiled_code_has_the_instructions() -> None:
    _all_rows(np.zeros((1, 16), np.float32))
    assert all("prefetch" in code for code in _all_rows.inspect_llvm().values())
