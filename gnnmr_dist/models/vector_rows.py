"""Sums over rows, and maxima, as vector instructions, for compiled loops: what is summed up stays in registers.

A compiled loop over columns inside one over edges is not made into such a sum: the compiler cannot know that the row
written is none of the rows read, so it writes it back after every edge, and asks at every edge whether the two overlap.

A maximum is not, as it might be NaN.

Arrays of rows are [n, c] with any distance between rows and none between columns, which callers answer for; their
kinds are checked when a loop is compiled. Vectors are as long as a cache line; the compiler splits them where registers
are shorter. Numba does not notice changes here in loops it has compiled elsewhere: delete ``__pycache__/*.nb?`` then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

_LINE = 64  # bytes of a cache line
_AT_ONCE = 4  # lines of a row that stay in registers
_CONTRACT = ("contract",)
_SPAN = types.UniTuple(types.intp, 3)


class _Array:
    """An array inside a function that is being built."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self.builder, self.size = builder, kind.dtype.bitwidth // 8
        self.pointer, self.start = array.data.type, builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self.shape, self.strides = (cgutils.unpack_tuple(builder, t) for t in (array.shape, array.strides))
        self.kind, self.context = kind.dtype, context

    @property
    def scalar(self) -> Any:
        """The type of one number."""
        return self.pointer.pointee

    @property
    def vector(self) -> Any:
        """The type of as many numbers as fill a cache line."""
        return ir.VectorType(self.scalar, _LINE // self.size)

    def number(self, place: Any) -> Any:
        """The whole number at ``place``, as wide as an address."""
        found = self.builder.load(self.element(place))
        return self.context.cast(self.builder, found, self.kind, types.intp)

    def element(self, place: Any) -> Any:
        """Pointer to the element, or to the row, at ``place`` of the first axis."""
        start = self.builder.gep(self.start, [self.builder.mul(place, self.strides[0])])
        return self.builder.bitcast(start, self.pointer)

    def read(self, row: Any, column: Any, shape: Any) -> Any:
        """Columns from ``column`` on of the row at this pointer: a vector, or one number."""
        return self.builder.load(self._at(row, column, shape), align=self.size)

    def write(self, value: Any, row: Any, column: Any) -> None:
        """The same columns, written."""
        self.builder.store(value, self._at(row, column, value.type), align=self.size)

    def _at(self, row: Any, column: Any, shape: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(row, [column]), shape.as_pointer())


def _check(axes: int, dtype: Any, *, written: bool = False, **arrays: Any) -> None:
    """Refuse, when a loop is compiled, arrays of which the built code would make nonsense."""
    wanted = f"{axes} axes of {dtype}" + (", to be written" if written else "")
    for name, kind in arrays.items():
        fits = kind.ndim == axes and kind.dtype == dtype and (axes == 1 or kind.layout != "F")
        if not fits or (written and not kind.mutable):
            raise TypingError(f"{name}: expected an array with {wanted}, got {kind}")


def _everywhere(builder: Any, number: Any, shape: Any) -> Any:
    """A vector of one number; with the type of a number, itself."""
    if not isinstance(shape, ir.VectorType):
        return number
    none, place = ir.Constant(shape, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(none, number, place(0))
    return builder.shuffle_vector(
        first, none, ir.Constant(ir.VectorType(place, shape.count), [0] * shape.count)
    )


def _plus_product(builder: Any, total: Any, a: Any, b: Any) -> Any:
    return builder.fadd(total, builder.fmul(a, b, flags=_CONTRACT), flags=_CONTRACT)


def _put_larger(builder: Any, place: Any, value: Any) -> None:
    """Put ``value`` where it is larger than what is there."""
    there = builder.load(place)
    builder.store(builder.select(builder.fcmp_ordered(">", value, there), value, there), place)


def _reduced(builder: Any, how: str, given: Sequence[Any], flags: Sequence[str]) -> Any:
    """One number from the vector that is the last of ``given``, by LLVM's reduction of this name."""
    vector = given[-1].type
    bits = 32 if isinstance(vector.element, ir.FloatType) else 64
    kind = ir.FunctionType(vector.element, [value.type for value in given])
    name = f"llvm.vector.reduce.{how}.v{vector.count}f{bits}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given, fastmath=flags)


def _sum(builder: Any, value: Any) -> Any:
    """The sum of a vector's numbers, in whatever order; of one number, itself."""
    if not isinstance(value.type, ir.VectorType):
        return value
    return _reduced(builder, "fadd", [value.type.element(-0.0), value], ("reassoc",))


def _for_columns(rows: _Array, emit: Callable[[Sequence[Any], Any], None]) -> None:
    """Have ``emit`` build what is done with some columns: four lines at a time, then one, then single numbers.

    It gets the places where vectors begin, and their type.
    """
    builder, total, vector = rows.builder, rows.shape[-1], rows.vector
    start = total.type(0)
    for shape, count in ((vector, _AT_ONCE), (vector, 1), (rows.scalar, 1)):
        width = vector.count if shape == vector else 1
        step = total.type(width * count)
        stop = builder.mul(builder.sdiv(total, step), step)
        with cgutils.for_range_slice(builder, start, stop, step) as (column, _):
            emit([builder.add(column, total.type(j * width)) for j in range(count)], shape)
        start = stop


def _not_zero(builder: Any, number: Any) -> Any:
    return builder.if_then(builder.fcmp_unordered("!=", number, number.type(0.0)))


@intrinsic
def sum_rows(
    _: Any, out: Any, v: Any, x: Any, row: Any, share: Any, source: Any, weight: Any, span: Any
) -> Any:
    """``out[v]`` = share x[row] + the sum over edges begin <= e < end of weight[e - base] x[source[e]].

    Args:
        out, x: [D, c] and [S, c].
        row, share: a source of its own; with share 0 none, and ``row`` may be any number.
        source: [E].
        weight: of some edges, that of edge ``base`` first.
        span: (begin, end, base).
    """

    _check(2, x.dtype, x=x)
    _check(2, x.dtype, written=True, out=out)
    _check(1, x.dtype, weight=weight)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = [_Array(context, builder, signature.args[j], values[j]) for j in (0, 2, 5, 6)]
        to, rows, sources, weights = arrays
        begin, end, base = cgutils.unpack_tuple(builder, values[7])
        target, first, share = to.element(values[1]), rows.element(values[3]), values[4]

        def emit(columns: Sequence[Any], shape: Any) -> None:
            sums = [cgutils.alloca_once(builder, shape) for _ in columns]

            def add(row: Any, number: Any) -> None:
                factor = _everywhere(builder, number, shape)
                for total, column in zip(sums, columns, strict=True):
                    part = rows.read(row, column, shape)
                    builder.store(_plus_product(builder, builder.load(total), factor, part), total)

            for total in sums:
                builder.store(_everywhere(builder, rows.scalar(0.0), shape), total)
            with _not_zero(builder, share):
                add(first, share)
            with cgutils.for_range_slice(builder, begin, end, begin.type(1)) as (edge, _):
                factor = builder.load(weights.element(builder.sub(edge, base)))
                add(rows.element(sources.number(edge)), factor)
            for total, column in zip(sums, columns, strict=True):
                to.write(builder.load(total), target, column)

        _for_columns(rows, emit)
        return context.get_dummy_value()

    return types.none(out, types.intp, x, types.intp, x.dtype, source, weight, _SPAN), build


@intrinsic
def spread_row(
    _: Any,
    grad: Any,
    v: Any,
    x: Any,
    grad_x: Any,
    row: Any,
    share: Any,
    source: Any,
    weight: Any,
    dot: Any,
    span: Any,
) -> Any:
    """The way back of :func:`sum_rows`, given ``grad[v]``: add to ``grad_x``, and the products with rows to ``dot``.

    For edges begin <= e < end: grad_x[source[e]] += weight[e - base] grad[v], dot[e - base] += grad[v] . x[source[e]].
    With a share, grad_x[row] += share grad[v], and grad[v] . x[row] is returned; without, 0.
    """

    _check(2, x.dtype, grad=grad, x=x)
    _check(2, x.dtype, written=True, grad_x=grad_x)
    _check(1, x.dtype, weight=weight)
    _check(1, x.dtype, written=True, dot=dot)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        arrays = [_Array(context, builder, signature.args[j], values[j]) for j in (0, 2, 3, 6, 7, 8)]
        upper, rows, to, sources, weights, products = arrays
        begin, end, base = cgutils.unpack_tuple(builder, values[9])
        own, share = upper.element(values[1]), values[5]
        own_dot = cgutils.alloca_once_value(builder, rows.scalar(0.0))

        def emit(columns: Sequence[Any], shape: Any) -> None:
            parts = [upper.read(own, column, shape) for column in columns]

            def spread(w: Any, number: Any, product: Any) -> None:
                row, target = rows.element(w), to.element(w)
                factor, total = (_everywhere(builder, t, shape) for t in (number, rows.scalar(0.0)))
                for part, column in zip(parts, columns, strict=True):
                    total = _plus_product(builder, total, part, rows.read(row, column, shape))
                    added = _plus_product(builder, to.read(target, column, shape), factor, part)
                    to.write(added, target, column)
                builder.store(builder.fadd(builder.load(product), _sum(builder, total)), product)

            with _not_zero(builder, share):
                spread(values[4], share, own_dot)
            with cgutils.for_range_slice(builder, begin, end, begin.type(1)) as (edge, _):
                at = builder.sub(edge, base)
                factor = builder.load(weights.element(at))
                spread(sources.number(edge), factor, products.element(at))

        _for_columns(rows, emit)
        return builder.load(own_dot)

    return x.dtype(grad, types.intp, x, grad_x, types.intp, x.dtype, source, weight, dot, _SPAN), build


@intrinsic
def largest(_: Any, x: Any, least: Any) -> Any:
    """The largest of ``least``, which must not be NaN, and the numbers x [n]; NaN among them is passed over."""
    if x.layout != "C":
        raise TypingError(f"x: expected numbers that lie one after the other, got {x}")
    _check(1, x.dtype, x=x)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        row = _Array(context, builder, signature.args[0], values[0])
        first, peak = row.element(row.strides[0].type(0)), cgutils.alloca_once_value(builder, values[1])
        tops = [cgutils.alloca_once(builder, row.vector) for _ in range(_AT_ONCE)]
        for top in tops:
            builder.store(_everywhere(builder, values[1], row.vector), top)

        def emit(places: Sequence[Any], shape: Any) -> None:
            for place, top in zip(places, tops if shape == row.vector else [peak], strict=False):
                _put_larger(builder, top, row.read(first, place, shape))

        _for_columns(row, emit)
        for top in tops:
            most = _reduced(builder, "fmax", [builder.load(top)], ("nnan", "nsz"))
            _put_larger(builder, peak, most)
        return builder.load(peak)

    return x.dtype(x, x.dtype), build
