"""Compiled CPU loops over rows: placed, filled in, brought to unit length, multiplied in pairs. One thread, in order.

Axes: n rows, d columns; of scores: s seeds, n users, b rows, p own columns.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gnnmr_dist.models.arithmetic import FASTMATH


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def put_rows(x: Any, rows: Any, places: Any, out: Any) -> None:
    """``out[places] = x[rows]``, row by row."""
    for j in range(places.size):
        row, place = rows[j], places[j]
        for c in range(x.shape[1]):
            out[place, c] = x[row, c]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def unit_rows(x: Any, least: Any, out: Any, inverse: Any) -> None:
    """Fill ``inverse`` [n] with 1 / max(length, least) of rows of x [n, d], and ``out`` [n, d] with x times that."""
    one = x.dtype.type(1)
    for j in range(x.shape[0]):
        total = x.dtype.type(0)
        for c in range(x.shape[1]):
            total += x[j, c] * x[j, c]
        scale = one / max(np.sqrt(total), least)
        inverse[j] = scale
        for c in range(x.shape[1]):
            out[j, c] = x[j, c] * scale


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def unit_rows_backward(unit: Any, least: Any, inverse: Any, grad: Any, out: Any) -> None:
    """Gradient of x [n, d] from ``grad`` of ``unit`` = x / |x|: what is across the row, over |x|.

    Where a row is shorter than ``least``, all of ``grad`` over ``least``.
    """
    one = unit.dtype.type(1)
    for j in range(unit.shape[0]):
        scale, along = inverse[j], unit.dtype.type(0)
        if scale * least < one:
            for c in range(unit.shape[1]):
                along += unit[j, c] * grad[j, c]
        for c in range(unit.shape[1]):
            out[j, c] = (grad[j, c] - along * unit[j, c]) * scale


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def pair_products(u: Any, row_user: Any, h: Any, own: Any, out: Any) -> None:
    """Fill ``out`` [b, p] with the products of rows u[row_user] of [n, d] and h[own] of [s, d]."""
    for j in range(row_user.size):
        user = row_user[j]
        for column in range(own.shape[1]):
            place, total = own[j, column], u.dtype.type(0)
            for c in range(u.shape[1]):
                total += u[user, c] * h[place, c]
            out[j, column] = total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def pair_products_backward(
    u: Any, row_user: Any, h: Any, own: Any, grad: Any, grad_u: Any, grad_h: Any
) -> None:
    """Add to the gradients of u [n, d] and h [s, d], given ``grad`` [b, p] of :func:`pair_products`."""
    for j in range(row_user.size):
        user = row_user[j]
        for column in range(own.shape[1]):
            place, g = own[j, column], grad[j, column]
            for c in range(u.shape[1]):
                grad_u[user, c] += g * h[place, c]
            for c in range(u.shape[1]):
                grad_h[place, c] += g * u[user, c]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def add_rows(x: Any, scale: Any, places: Any, out: Any) -> None:
    """``out[places] += scale * x``, row by row."""
    for j in range(places.size):
        place = places[j]
        for c in range(x.shape[1]):
            out[place, c] += scale * x[j, c]
