"""Rows asked for before they are needed: the processor fetches them while it computes on others.

Rows met at random places come from memory with a wait each; the processor looks ahead by itself, but not across as many
sums as a row takes. A prefetch changes no value.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

AHEAD = 8
"""Rows between asking for one and using it (measured: 8 to 32 are alike)."""

_LINE = 64  # bytes of a cache line


def _asks(write: int) -> Any:
    """An intrinsic (x, row): ask for all cache lines of a row of a contiguous ``x`` [n, ...].

    Not a compiled function, whose counting of references to ``x`` would cost more than the wait.
    """

    def signed(_: Any, x: Any, row: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, values[0])
            size = context.get_constant(types.intp, signature.args[0].dtype.bitwidth // 8)
            for length in cgutils.unpack_tuple(builder, array.shape)[1:]:
                size = builder.mul(size, length)
            start = builder.bitcast(array.data, ir.IntType(8).as_pointer())
            start = builder.gep(start, [builder.mul(values[1], size)])
            flag, none = ir.IntType(32), ir.VoidType()
            kind = ir.FunctionType(none, [start.type, flag, flag, flag])
            prefetch = builder.module.declare_intrinsic("llvm.prefetch", [start.type], kind)
            with cgutils.for_range_slice(builder, size.type(0), size, size.type(_LINE)) as (place, _):
                builder.call(prefetch, [builder.gep(start, [place]), flag(write), flag(3), flag(1)])
            return context.get_dummy_value()

        return types.none(x, types.intp), build

    return intrinsic(signed)


ask_to_read, ask_to_write = _asks(0), _asks(1)
