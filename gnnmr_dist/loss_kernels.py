"""Compiled CPU loops of the losses: a user's softmaxes, losses and gradients while they are in cache; float32 only.

What the rows of a user share, the scores of the step's candidates, is gone through once for all of them
(:mod:`gnnmr_dist.step_losses` has the form). Axes: b rows, p own columns, n users, C candidates.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from gnnmr_dist.models.arithmetic import FASTMATH, exp
from gnnmr_dist.models.vector_rows import largest

LOWEST = np.float32(-1e30)  # stands for -inf: differences of two of them are 0, not NaN


@numba.njit(cache=True, nogil=True)
def rows_by_user(row_user: Any, num_users: int) -> Any:
    """Pointers [n + 1] and rows [b]: user u has rows[pointers[u]:pointers[u + 1]], ascending."""
    pointers = np.zeros(num_users + 1, np.int64)
    for user in row_user:
        pointers[user + 1] += 1
    for u in range(num_users):
        pointers[u + 1] += pointers[u]
    rows, free = np.empty(row_user.size, np.int64), pointers[:-1].copy()
    for r in range(row_user.size):
        rows[free[row_user[r]]] = r
        free[row_user[r]] += 1
    return pointers, rows


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _exponentials(row: Any) -> Any:
    """Replace ``row`` by exp(row - peak); the peak and the sum (0 where all are LOWEST, NaN where one is)."""
    peak, total = largest(row, LOWEST), np.float32(0)  # NaN passed over shows in the sum
    for j in range(row.size):
        row[j] = exp(row[j] - peak)
        total += row[j]
    nothing = peak == LOWEST and total == row.size
    return peak, np.float32(0) if nothing else total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def sampled_softmax(
    own: Any, shared: Any, row_user: Any, known: Any, scale: Any, grad_own: Any, grad_shared: Any
) -> float:
    """Sum over rows of -ln softmax(own column, candidates not known)[own column].

    Args:
        own: scores of the positives [b, 1].
        shared: of the candidates [n, C].
        row_user: each row's user [b].
        known: bool [n, C], candidates left out.
        scale: factor of the gradients.
        grad_own, grad_shared: filled.
    """
    pointers, rows = rows_by_user(row_user, shared.shape[0])
    loss = 0.0
    for u in range(shared.shape[0]):
        e = grad_shared[u]
        for c in range(e.size):
            e[c] = LOWEST if known[u, c] else shared[u, c]
        peak, total = _exponentials(e)
        inverse = np.float32(0)  # sum over the user's rows of exp(peak - the row's ln of the sum)
        for r in rows[pointers[u] : pointers[u + 1]]:
            top = max(peak, own[r, 0])
            mine, rest = exp(own[r, 0] - top), exp(peak - top)
            whole = total * rest + mine
            loss += math.log(whole) + top - own[r, 0]
            inverse += rest / whole
            grad_own[r, 0] = scale * (mine / whole - np.float32(1))
        factor = scale * inverse
        for c in range(e.size):
            e[c] = np.float32(0) if known[u, c] else e[c] * factor
    return loss


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _teacher(own: Any, total: Any, count: Any, present: bool, masked: bool, soften: Any) -> Any:
    """The mean score of the others over the temperature; LOWEST where the cell is masked or no other one judges."""
    weight = np.float32(present)
    others = count - weight
    mean = (total - weight * own) / max(others, np.float32(1))
    return LOWEST if masked | (others == 0) else mean * soften


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def _shared_cells(cells: Any, soften: Any, teacher: Any, q: Any, gap: Any) -> Any:
    """A user's candidates: exponentials of both sides; peak and sum of each; the sum of p (ln p - ln q), unscaled."""
    student, value, total, count, present, known = cells
    for c in range(q.size):
        teacher[c] = _teacher(value[c], total[c], count[c], present[c], known[c], soften)
        q[c] = LOWEST if teacher[c] == LOWEST else student[c] * soften  # NaN counts, and shows
        gap[c] = teacher[c] - q[c]
    t_peak, t_total = _exponentials(teacher)
    q_peak, q_total = _exponentials(q)
    spread = np.float32(0)
    for c in range(q.size):
        spread += teacher[c] * gap[c]
    return t_peak, t_total, q_peak, q_total, spread


@numba.njit(cache=True, nogil=True)
def _three_rows(size: int) -> Any:
    """Room for three rows, each of its own: loops over rows of one array would have to allow for their overlapping."""
    return np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=FASTMATH)
def mutual_kl(
    student: Any,
    value: Any,
    total: Any,
    count: Any,
    present: Any,
    masked: Any,
    row_user: Any,
    soften: Any,
    scale: Any,
    grad: Any,
) -> float:
    """Sum over rows of KL(softmax of the peers' mean score || softmax of the student's); adds to the gradients.

    Args:
        student, value: its scores, and as its peers see them, each (own [b, p], shared [n, C]).
        total, count: sums over modalities where present, and how many (own [b, p], shared [n, C]; count: [C]).
        present: whether the student's modality is (own bool [b, p], shared bool [C]).
        masked: cells that count on neither side (own bool [b, p], shared bool [n, C]).
        row_user: each row's user [b].
        soften, scale: 1 / temperature, on both sides; factor of the gradients.
        grad: (own, shared), added to.
    """
    pointers, rows = rows_by_user(row_user, student[1].shape[0])
    teacher, q, gap = _three_rows(student[1].shape[1])
    own_t, own_q = np.empty(student[0].shape[1], np.float32), np.empty(student[0].shape[1], np.float32)
    factor, loss = soften * scale, 0.0
    for u in range(student[1].shape[0]):
        cells = (student[1][u], value[1][u], total[1][u], count[1], present[1], masked[1][u])
        t_peak, t_total, q_peak, q_total, spread = _shared_cells(cells, soften, teacher, q, gap)
        t_inverse = q_inverse = np.float32(0)
        for r in rows[pointers[u] : pointers[u + 1]]:
            t_top, q_top, judged = t_peak, q_peak, t_total != 0
            for j in range(own_q.size):
                x, whole, many = value[0][r, j], total[0][r, j], count[0][r, j]
                own_t[j] = _teacher(x, whole, many, present[0][r, j], masked[0][r, j], soften)
                own_q[j] = LOWEST if own_t[j] == LOWEST else student[0][r, j] * soften
                t_top, q_top = max(t_top, own_t[j]), max(q_top, own_q[j])
                judged |= own_t[j] != LOWEST
            if not judged:
                continue
            t_rest, q_rest = exp(t_peak - t_top), exp(q_peak - q_top)
            t_whole, q_whole, row_spread = t_total * t_rest, q_total * q_rest, spread * t_rest
            for j in range(own_q.size):
                if own_t[j] != LOWEST:
                    p = exp(own_t[j] - t_top)
                    t_whole += p
                    q_whole += exp(own_q[j] - q_top)
                    row_spread += p * (own_t[j] - own_q[j])
            loss += row_spread / t_whole + math.log(q_whole) + q_top - math.log(t_whole) - t_top
            t_inverse, q_inverse = t_inverse + t_rest / t_whole, q_inverse + q_rest / q_whole
            for j in range(own_q.size):
                if own_t[j] != LOWEST:
                    grad[0][r, j] += factor * (
                        exp(own_q[j] - q_top) / q_whole - exp(own_t[j] - t_top) / t_whole
                    )
        if t_total != 0:
            for c in range(q.size):
                grad[1][u, c] += factor * (q[c] * q_inverse - teacher[c] * t_inverse)
    return loss
