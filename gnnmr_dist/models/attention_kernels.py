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


@numba.njit(cache=True, nogil=True, inline="always")
def _leaky(x: Any, slope: Any) -> Any:
    return x if x > 0 else x * slope


@numba.njit(cache=True, nogil=True, inline="always")
def _before_leaky(grad: Any, x: Any, slope: Any) -> Any:
    """The gradient at x of LeakyReLU(x); at 0 that of the negative side, as torch has it."""
    return grad if x > 0 else grad * slope


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
    zero, heads = x.dtype.type(0), x.shape[1]
    for v in range(indptr.size - 1):
        begin, end, row = indptr[v], indptr[v + 1], first + v
        for h in range(heads):
            mine = halves[row, heads + h]
            own_logit = _leaky(halves[row, h] + mine, slope) if loop else x.dtype.type(-3e38)
            peak = own_logit
            for e in range(begin, end):
                logit = _leaky(halves[source[e], h] + mine, slope) + shift[v]
                weight[h, e] = logit
                peak = max(peak, logit)
            share = exp(own_logit - peak) if loop else zero
            total = share
            for e in range(begin, end):
                p = exp(weight[h, e] - peak)
                weight[h, e] = p
                total += p
            own[v, h] = zero
            if loop:
                share /= total
                own[v, h] = share
                for c in range(x.shape[2]):
                    out[v, h, c] = share * x[row, h, c]
            else:
                for c in range(x.shape[2]):
                    out[v, h, c] = zero
            for e in range(begin, end):
                w = source[e]
                if h == 0 and e + AHEAD < source.size:
                    ask_to_read(x, source[e + AHEAD])
                weight[h, e] /= total
                a = weight[h, e] * (up[row] * down[w])
                for c in range(x.shape[2]):
                    out[v, h, c] += a * x[w, h, c]


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
    zero, heads, dots = x.dtype.type(0), x.shape[1], np.empty(source.size, x.dtype)
    for v in range(indptr.size - 1):
        begin, end, row = indptr[v], indptr[v + 1], first + v
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
                    ask_to_read(x, source[e + AHEAD])
                    ask_to_write(grad_x, source[e + AHEAD])
                a, dot = weight[h, e] * factor, zero
                for c in range(x.shape[2]):
                    g = grad[v, h, c]
                    dot += g * x[w, h, c]
                    grad_x[w, h, c] += a * g
                dots[e] = dot * factor
                mean += a * dot
            if loop:
                d = _before_leaky(share * (own_dot - mean), halves[row, h] + mine, slope)
                grad_halves[row, h] += d
                grad_halves[row, heads + h] += d
            total = zero
            for e in range(begin, end):
                w = source[e]
                d = _before_leaky(weight[h, e] * (dots[e] - mean), halves[w, h] + mine, slope)
                grad_halves[w, h] += d
                total += d
            grad_halves[row, heads + h] += total
