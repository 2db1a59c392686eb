"""Compiled CPU loops of graph attention, one head at a time: logits, softmax and weighted sum while edges are in cache.

Exponentials are taken for the edges of several destinations at once, as a destination's few would not fill vectors.
Backward: with d_e = factor_e * grad . x[source e] and the softmax p, logit e has the gradient p_e (d_e - sum of p d).
One thread, rows in order: the same bits in every run (on machines with the same vector instructions), and for a
destination the same whatever its neighbours in the block.

Axes: E edges, S sources, D destinations, H heads, c channels per head. Edges into destinations start..stop - 1 are
called a batch here; arrays of a batch begin with its first edge or destination.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gnnmr_dist.models.arithmetic import FASTMATH, exp
from gnnmr_dist.models.vector_rows import spread_row, sum_rows

_TOGETHER = 64  # destinations of a batch
_WHOLE = 64  # arrays of exponentials have a multiple of this length: no element is left over by vectors


@numba.njit(cache=True, nogil=True, inline="always")
def _leaky(x: Any, slope: Any) -> Any:
    return x if x > 0 else x * slope


@numba.njit(cache=True, nogil=True, inline="always")
def _before_leaky(grad: Any, x: Any, slope: Any) -> Any:
    """The gradient at x of LeakyReLU(x); at 0 that of the negative side, as torch has it."""
    return grad if x > 0 else grad * slope


@numba.njit(cache=True, nogil=True, inline="always")
def _at(index: Any) -> Any:
    """An index known not to be negative, for which no code is made that counts from the end."""
    return np.uintp(index)


@numba.njit(cache=True, nogil=True)
def _with_room(array: Any, size: int) -> Any:
    """``array`` if it has at least ``size`` elements, else a larger one of zeros."""
    return array if array.size >= size else np.zeros(-(-2 * size // _WHOLE) * _WHOLE, array.dtype)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _exponentials(x: Any, count: int) -> None:
    """Replace the first ``count`` elements, and those up to a whole number of vectors, by their exponentials."""
    whole = x[: -(-count // _WHOLE) * _WHOLE]
    for j in range(whole.size):
        whole[j] = exp(whole[j])


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _logits(edges: Any, start: int, stop: int, terms: Any, logit: Any, own: Any) -> None:
    """Fill logits less the largest into the same destination: of a batch's edges, and of its self-loops ``own``."""
    indptr, source, first = edges
    here, there, shift, _, _, loop, slope = terms
    base = indptr[start]
    for v in range(start, stop):
        begin, end, mine = indptr[v], indptr[v + 1], there[first + v]
        mine_own = _leaky(here[first + v] + mine, slope) if loop else here.dtype.type(-3e38)
        peak = mine_own
        for e in range(begin, end):
            x = _leaky(here[_at(source[_at(e)])] + mine, slope) + shift[v]
            logit[_at(e - base)] = x
            peak = max(peak, x)
        own[v - start] = mine_own - peak
        for e in range(begin - base, end - base):
            logit[_at(e)] -= peak


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _shares(
    edges: Any, start: int, stop: int, terms: Any, power: Any, own_power: Any, weight: Any, own: Any
) -> None:
    """The softmax from exponentials: fill ``weight`` [E] and ``own`` [D]; a batch's ``power`` becomes edge factors."""
    indptr, source, first = edges
    _, _, _, up, down, loop, _ = terms
    base, none = indptr[start], up.dtype.type(0)
    for v in range(start, stop):
        begin, end = indptr[v], indptr[v + 1]
        share = own_power[v - start] if loop else none
        total = share
        for e in range(begin - base, end - base):
            total += power[_at(e)]
        inverse = up.dtype.type(1) / total
        own[v] = share * inverse if loop else none
        for e in range(begin, end):
            p = power[_at(e - base)] * inverse
            weight[_at(e)] = p
            power[_at(e - base)] = p * (up[first + v] * down[_at(source[_at(e)])])


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _sums(edges: Any, start: int, stop: int, x: Any, factor: Any, own: Any, out: Any) -> None:
    """Fill ``out`` of a batch's destinations with their sums of rows times ``factor``, self-loops included."""
    indptr, source, first = edges
    for v in range(start, stop):
        sum_rows(out, v, x, first + v, own[v], source, factor, (indptr[v], indptr[v + 1], indptr[start]))


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _forward_head(edges: Any, x: Any, terms: Any, out: Any, weight: Any, own: Any) -> None:
    indptr = edges[0]
    power, own_power = np.zeros(0, x.dtype), np.zeros(_TOGETHER, x.dtype)
    for start in range(0, indptr.size - 1, _TOGETHER):
        stop = min(start + _TOGETHER, indptr.size - 1)
        count = indptr[stop] - indptr[start]
        power = _with_room(power, count)
        _logits(edges, start, stop, terms, power, own_power)
        _exponentials(power, count)
        _exponentials(own_power, _TOGETHER)
        _shares(edges, start, stop, terms, power, own_power, weight, own)
        _sums(edges, start, stop, x, power, own, out)


@numba.njit(cache=True, nogil=True)
def attention_forward(
    indptr: Any,
    source: Any,
    first: int,
    x: Any,
    halves: Any,
    shift: Any,
    up: Any,
    down: Any,
    loop: bool,
    slope: Any,
    out: Any,
    weight: Any,
    own: Any,
) -> None:
    """Fill ``out`` [D, H, c] and the softmax: ``weight`` [H, E], and of the self-loops ``own`` [D, H] (0 without).

    Destination v is source row r = first + v. Edge w -> v has the logit LeakyReLU(halves[w, h] + halves[r, H + h])
    + shift[v] in head h and counts softmax * up[r] * down[w]; the self-loop has neither shift nor factor, and is not
    read where its share is 0.

    Args:
        indptr, source: the block, [D + 1] and [E].
        first: source row of destination 0.
        x: [S, H, c].
        halves: [S, 2H], every row's part of the logit as a source, then as a destination.
        shift: [D].
        up, down: [S].
        loop: whether each destination attends to itself too.
        slope: of LeakyReLU.
        out, weight, own: filled.
    """
    heads = x.shape[1]
    for h in range(heads):
        terms = (halves[:, h], halves[:, heads + h], shift, up, down, loop, slope)
        _forward_head((indptr, source, first), x[:, h], terms, out[:, h], weight[h], own[:, h])


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _edge_factors(edges: Any, start: int, stop: int, terms: Any, weight: Any, scratch: Any) -> None:
    """Fill the degree factors of a batch's edges, and what its edges count; their products with 0."""
    indptr, source, first = edges
    (_, _, _, up, down, _, _), (scale, factor, dot, _) = terms, scratch
    base = indptr[start]
    for v in range(start, stop):
        for e in range(indptr[v], indptr[v + 1]):
            scale[_at(e - base)] = up[first + v] * down[_at(source[_at(e)])]
            factor[_at(e - base)] = weight[_at(e)] * scale[_at(e - base)]
            dot[_at(e - base)] = 0


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _spread(edges: Any, start: int, stop: int, x: Any, own: Any, of_rows: Any, scratch: Any) -> None:
    """Add to the gradient of x; fill each edge's d_e, and each self-loop's product of its row with ``grad``."""
    indptr, source, first = edges
    (grad, grad_x), (scale, factor, dot, own_dot) = of_rows, scratch
    base = indptr[start]
    for v in range(start, stop):
        span = (indptr[v], indptr[v + 1], base)
        own_dot[v - start] = spread_row(grad, v, x, grad_x, first + v, own[v], source, factor, dot, span)
    for j in range(indptr[stop] - base):
        dot[_at(j)] *= scale[_at(j)]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _logit_gradients(
    edges: Any, start: int, stop: int, terms: Any, softmax: Any, of_halves: Any, scratch: Any
) -> None:
    """Add to the gradients of both halves of the logits."""
    indptr, source, first = edges
    here, there, _, _, _, loop, slope = terms
    (weight, own), (grad_here, grad_there), (_, _, dot, own_dot) = softmax, of_halves, scratch
    base = indptr[start]
    for v in range(start, stop):
        row, share = first + v, own[v]
        begin, end, mine = indptr[v], indptr[v + 1], there[row]
        mean = share * own_dot[v - start]
        for e in range(begin, end):
            mean += weight[_at(e)] * dot[_at(e - base)]
        total = here.dtype.type(0)
        for e in range(begin, end):
            w = _at(source[_at(e)])
            d = _before_leaky(weight[_at(e)] * (dot[_at(e - base)] - mean), here[w] + mine, slope)
            grad_here[w] += d
            total += d
        if loop:
            d = _before_leaky(share * (own_dot[v - start] - mean), here[row] + mine, slope)
            grad_here[row] += d
            total += d
        grad_there[row] += total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _backward_head(edges: Any, x: Any, terms: Any, softmax: Any, of_rows: Any, of_halves: Any) -> None:
    indptr, none = edges[0], np.zeros(0, x.dtype)
    scale, factor, dot, own_dot = none, none, none, np.zeros(_TOGETHER, x.dtype)
    for start in range(0, indptr.size - 1, _TOGETHER):
        stop = min(start + _TOGETHER, indptr.size - 1)
        count = indptr[stop] - indptr[start]
        scale, factor, dot = _with_room(scale, count), _with_room(factor, count), _with_room(dot, count)
        scratch = (scale, factor, dot, own_dot)
        _edge_factors(edges, start, stop, terms, softmax[0], scratch)
        _spread(edges, start, stop, x, softmax[1], of_rows, scratch)
        _logit_gradients(edges, start, stop, terms, softmax, of_halves, scratch)


@numba.njit(cache=True, nogil=True)
def attention_backward(
    indptr: Any,
    source: Any,
    first: int,
    x: Any,
    halves: Any,
    up: Any,
    down: Any,
    loop: bool,
    slope: Any,
    weight: Any,
    own: Any,
    grad: Any,
    grad_x: Any,
    grad_halves: Any,
) -> None:
    """Add to the gradients of x [S, H, c] and of ``halves`` [S, 2H], given ``grad`` [D, H, c] of the sum.

    Args:
        grad: [D, H, c].
        grad_x, grad_halves: added to.
        the others: what :func:`attention_forward` took and filled.
    """
    heads = x.shape[1]
    for h in range(heads):
        terms = (halves[:, h], halves[:, heads + h], up, up, down, loop, slope)  # no shift is needed here
        of_rows, of_halves = (grad[:, h], grad_x[:, h]), (grad_halves[:, h], grad_halves[:, heads + h])
        _backward_head((indptr, source, first), x[:, h], terms, (weight[h], own[:, h]), of_rows, of_halves)
