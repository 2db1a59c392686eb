"""Rows asked for before they are needed: the processor fetches them while it computes on others.

Rows met at random places come from memory with a wait each; the processor looks ahead by itself, but not across as many
sums as a row takes. A prefetch changes no value.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

AHEAD = 16
"""Edges between asking for a row and using it (measured: 8 to 32 are alike)."""

_LINE = 64  # bytes of a cache line


def _fetch(write: int) -> Callable[[Any, int], None]:
    """A compiled function (array, place) that asks for the cache line of element ``place`` of a contiguous array."""

    def signed(_: Any, array: Any, place: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            address = builder.bitcast(builder.gep(data, [values[1]]), ir.IntType(8).as_pointer())
            number = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
            prefetch = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
            builder.call(prefetch, [address, number(write), number(3), number(1)])
            return context.get_dummy_value()

        return types.none(array, types.int64), build

    made: Callable[[Any, int], None] = intrinsic(signed)
    return made


_to_read, _to_write = _fetch(0), _fetch(1)


@intrinsic
def _per_line(_: Any, array: Any) -> Any:
    """Elements of a cache line, a constant where it is compiled."""
    count = _LINE * 8 // array.dtype.bitwidth
    return types.int64(array), lambda *_: ir.IntType(64)(count)


@numba.njit(cache=True, nogil=True, inline="always")
def fetch_row(x: Any, row: int) -> None:
    """Ask for row ``row`` of a contiguous ``x`` [n, H, c], to be read."""
    size = x.shape[1] * x.shape[2]
    for c in range(0, size, _per_line(x)):
        _to_read(x, row * size + c)


@numba.njit(cache=True, nogil=True, inline="always")
def fetch_row_to_write(x: Any, row: int) -> None:
    """Ask for row ``row`` of a contiguous ``x`` [n, H, c], to be changed."""
    size = x.shape[1] * x.shape[2]
    for c in range(0, size, _per_line(x)):
        _to_write(x, row * size + c)
