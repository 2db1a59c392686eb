"""Compiled CPU loops of :mod:`gnnmr_dist.row_adam`: rows caught up, and rows moved by a gradient.

Axes: U rows of a table, n of them, d columns.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from gnnmr_dist.models.arithmetic import FASTMATH


@numba.njit(cache=True)
def tail_moments(sizes: Any, beta1: float, beta2: float) -> Any:
    """T_n(s), float64 [len(sizes), N] for s = sizes and powers n = 0..N-1: see :mod:`gnnmr_dist.row_adam`."""
    count, powers = sizes
    out = np.zeros((count, powers))
    for n in range(powers):
        beta = beta1 * beta2 ** (0.5 * n)
        tail = beta / (1 - beta)
        for s in range(count + 2000, -1, -1):  # 2000 steps later what is cut off has faded away
            t = s + 1
            tail = beta * (tail + (1 - beta2**t) ** (-0.5 * n) / (1 - beta1**t))
            if s < count:
                out[s, n] = tail
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _missed(tails: Any, s: int, gap: int, beta1: float, beta2: float) -> Any:
    """Weight, mean and central moments 2 to 4 of g over the ``gap`` steps after step s."""
    last = tails.shape[0] - 1
    raw = np.empty(5)
    for n in range(5):
        cut = (beta1 * beta2 ** (0.5 * n)) ** gap
        raw[n] = tails[min(s, last), n] - cut * tails[min(s + gap, last), n]
    a = raw[1] / raw[0]
    e2, e3, e4 = raw[2] / raw[0], raw[3] / raw[0], raw[4] / raw[0]
    m2 = e2 - a * a
    m3 = e3 - 3 * a * e2 + 2 * a * a * a
    m4 = e4 - 4 * a * e3 + 6 * a * a * e2 - 3 * a * a * a * a
    return raw[0], a, m2, m3, m4


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _one_by_one(
    w: Any, m: Any, x: Any, s: int, gap: int, rate: Any, beta1: Any, beta2: Any, eps: Any
) -> None:
    one, fade1, fade2, root = m.dtype.type, 1.0, 1.0, np.sqrt(beta2)
    bias1, bias2 = beta1**s, beta2**s
    for _ in range(gap):
        fade1, fade2, bias1, bias2 = fade1 * beta1, fade2 * root, bias1 * beta1, bias2 * beta2
        a, g = one(rate * fade1 / (1 - bias1)), one(fade2 / np.sqrt(1 - bias2))
        for c in range(w.size):
            w[c] -= a * m[c] / (g * x[c] + eps)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def catch_up(
    weight: Any,
    mean: Any,
    square: Any,
    last: Any,
    rows: Any,
    now: int,
    rate: float,
    betas: Any,
    eps: float,
    tails: Any,
    exact_before: int,
    longest: int,
) -> None:
    """Bring ``rows`` [n] of the table from their last step to step ``now``, as if by gradients of zero.

    Args:
        weight, mean, square: [U, d], changed in place.
        last: int32 [U], each row's last step (0 = never moved); set to ``now``.
        rows: int64 [n].
        now: the step to reach.
        rate, betas, eps: of Adam.
        tails: float64 [N, 5], :func:`tail_moments`.
        exact_before: rows whose last step is smaller are moved step by step.
        longest: steps after which what a row still moves is below rounding.
    """
    beta1, beta2 = betas
    one = weight.dtype.type
    x, small = np.empty(weight.shape[1], weight.dtype), one(eps)
    for row in rows:
        s = np.int64(last[row])
        gap = now - s
        if gap <= 0 or s == 0:
            continue
        w, m, v = weight[row], mean[row], square[row]
        for c in range(w.size):
            x[c] = np.sqrt(v[c])
        if s < exact_before:
            _one_by_one(w, m, x, s, min(gap, longest), rate, beta1, beta2, small)
        else:
            total, a, m2, m3, m4 = _missed(tails, s, gap, beta1, beta2)
            step, at, c2, c3, c4 = one(rate * total), one(a), one(m2), one(m3), one(m4)
            for c in range(w.size):
                inverse = one(1) / (at * x[c] + small)
                r = x[c] * inverse
                w[c] -= step * m[c] * inverse * (one(1) + r * r * (c2 - r * (c3 - r * c4)))
        fade1, fade2 = beta1**gap, beta2**gap
        first, second = one(fade1 if fade1 > 1e-30 else 0.0), one(fade2 if fade2 > 1e-30 else 0.0)
        for c in range(w.size):
            m[c] *= first
            v[c] *= second
        last[row] = now


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def move(
    weight: Any,
    mean: Any,
    square: Any,
    last: Any,
    rows: Any,
    grad: Any,
    now: int,
    rate: float,
    betas: Any,
    eps: float,
) -> None:
    """One Adam step ``now`` of ``rows`` [n], which stand at step now - 1, by ``grad`` [n, d]."""
    beta1, beta2 = betas
    one = weight.dtype.type
    step = one(rate / (1 - beta1**now))
    scale, small = one(1 / np.sqrt(1 - beta2**now)), one(eps)
    keep, new, keep2, new2 = one(beta1), one(1 - beta1), one(beta2), one(1 - beta2)
    for j in range(rows.size):
        row = rows[j]
        w, m, v, g = weight[row], mean[row], square[row], grad[j]
        for c in range(w.size):
            m[c] = keep * m[c] + new * g[c]
            v[c] = keep2 * v[c] + new2 * (g[c] * g[c])
            w[c] -= step * m[c] / (np.sqrt(v[c]) * scale + small)
        last[row] = now
