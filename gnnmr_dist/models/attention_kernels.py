"""Compiled CPU loops of graph attention: a destination's logits, softmax and weighted sum while its edges are in cache.

Backward: with d_e = factor_e * grad . x[source e] and the softmax p, logit e has the gradient p_e (d_e - sum of p d).
One thread, rows in order: the same bits in every run (on machines with the same vector instructions).

Axes: E edges, S sources, D destinations, H heads, c channels per head.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gnnmr_dist.models.arithmetic import FASTMATH, exp
from gnnmr_dist.models.prefetch import AHEAD, ask_to_read, ask_to_write

_NEXT = 2  # destinations between asking for a row of their own and using it


@numba.njit(cache=True, nogil=True, inline="always")
def _leaky(x: Any, slope: Any) -> Any:
    return x if x > 0 else x * slope


@numba.njit(cache=True, nogil=True, inline="always")
def _before_leaky(grad: Any, x: Any, slope: Any) -> Any:
    """The gradient at x of LeakyReLU(x); at 0 that of the negative side, as torch has it."""
    return grad if x > 0 else grad * slope


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _exponentials(
    begin: Any,
    end: Any,
    source: Any,
    halves: Any,
    h: Any,
    row: Any,
    shift: Any,
    loop: Any,
    slope: Any,
    weight: Any,
) -> Any:
    """Fill ``weight[h, begin:end]`` with exp(logit - peak); return that of the self-loop (0 without) and their sum."""
    mine = halves[row, halves.shape[1] // 2 + h]
    own_logit = _leaky(halves[row, h] + mine, slope) if loop else halves.dtype.type(-3e38)
    peak = own_logit
    for e in range(begin, end):
        if h == 0 and e + AHEAD < source.size:
            ask_to_read(halves, source[e + AHEAD])
        logit = _leaky(halves[source[e], h] + mine, slope) + shift
        weight[h, e] = logit
        peak = max(peak, logit)
    share = exp(own_logit - peak) if loop else halves.dtype.type(0)
    total = share
    for e in range(begin, end):
        p = exp(weight[h, e] - peak)
        weight[h, e] = p
        total += p
    return share, total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
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
    + shift[v] in head h and counts softmax * up[r] * down[w]; the self-loop has neither shift nor factor.

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
    count = indptr.size - 1
    for v in range(count):
        begin, end, row = indptr[v], indptr[v + 1], first + v
        if v + _NEXT < count:
            ask_to_read(x, row + _NEXT)
            ask_to_write(out, v + _NEXT)
        for h in range(x.shape[1]):
            share, total = _exponentials(begin, end, source, halves, h, row, shift[v], loop, slope, weight)
            share = share / total if loop else share
            own[v, h] = share
            if loop:
                for c in range(x.shape[2]):
                    out[v, h, c] = share * x[row, h, c]
            else:
                for c in range(x.shape[2]):
                    out[v, h, c] = 0
            for e in range(begin, end):
                w = source[e]
                if h == 0 and e + AHEAD < source.size:
                    ask_to_read(x, source[e + AHEAD])
                weight[h, e] /= total
                a = weight[h, e] * (up[row] * down[w])
                for c in range(x.shape[2]):
                    out[v, h, c] += a * x[w, h, c]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _ask_for_source(x: Any, halves: Any, grad_x: Any, grad_halves: Any, row: Any) -> None:
    """Ask for all that the backward pass reads and changes of a source."""
    ask_to_read(x, row)
    ask_to_write(grad_x, row)
    ask_to_read(halves, row)
    ask_to_write(grad_halves, row)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _longest(indptr: Any) -> Any:
    """The most edges a destination has."""
    most = 0
    for v in range(indptr.size - 1):
        most = max(most, indptr[v + 1] - indptr[v])
    return most


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _logit_gradients(
    begin: Any,
    end: Any,
    source: Any,
    halves: Any,
    h: Any,
    mine: Any,
    slope: Any,
    weight: Any,
    dots: Any,
    mean: Any,
    grad_halves: Any,
) -> Any:
    """Add each edge's gradient to its source's half of the logit; return their sum, the destination's."""
    total = halves.dtype.type(0)
    for e in range(begin, end):
        w = source[e]
        d = _before_leaky(weight[h, e] * (dots[e - begin] - mean), halves[w, h] + mine, slope)
        grad_halves[w, h] += d
        total += d
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
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
    zero, heads, count = x.dtype.type(0), x.shape[1], indptr.size - 1
    dots = np.empty(_longest(indptr), x.dtype)
    for v in range(count):
        begin, end, row = indptr[v], indptr[v + 1], first + v
        if v + _NEXT < count:
            _ask_for_source(x, halves, grad_x, grad_halves, row + _NEXT)
            ask_to_read(grad, v + _NEXT)
        for h in range(heads):
            mine, share, own_dot = halves[row, heads + h], own[v, h], zero
            if loop:
                for c in range(x.shape[2]):
                    own_dot += grad[v, h, c] * x[row, h, c]
                    grad_x[row, h, c] += share * grad[v, h, c]
            mean = share * own_dot
            for e in range(begin, end):
                w, factor = source[e], up[row] * down[source[e]]
                if h == 0 and e + AHEAD < source.size:
                    _ask_for_source(x, halves, grad_x, grad_halves, source[e + AHEAD])
                a, dot = weight[h, e] * factor, zero
                for c in range(x.shape[2]):
                    g = grad[v, h, c]
                    dot += g * x[w, h, c]
                    grad_x[w, h, c] += a * g
                dots[e - begin] = dot * factor
                mean += a * dot
            if loop:
                d = _before_leaky(share * (own_dot - mean), halves[row, h] + mine, slope)
                grad_halves[row, h] += d
                grad_halves[row, heads + h] += d
            grad_halves[row, heads + h] += _logit_gradients(
                begin, end, source, halves, h, mine, slope, weight, dots, mean, grad_halves
            )
