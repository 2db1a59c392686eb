"""Compiled CPU loops of the losses: a row's softmaxes, loss and gradient while it is in cache; float32 only.

Axes: M modalities, b rows, S columns.
"""

# Numba's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from gnnmr_dist.models.arithmetic import FASTMATH, exp

LOWEST = np.float32(-1e30)  # stands for -inf: differences of two of them are 0, not NaN


@numba.njit(cache=True, nogil=True)
def _largest(row: Any) -> Any:
    """The largest of ``row``, sixteen columns at a time; NaN is passed over (the sum of exponentials shows it)."""
    lanes = np.full(16, row[0])
    whole = row.size - row.size % 16
    for start in range(0, whole, 16):
        for lane in range(16):
            x = row[start + lane]
            lanes[lane] = x if x > lanes[lane] else lanes[lane]
    peak = row[0]
    for lane in range(16):
        peak = max(peak, lanes[lane])
    for j in range(whole, row.size):
        peak = max(peak, row[j])
    return peak


@numba.njit(cache=True, nogil=True, fastmath=FASTMATH)
def softmax_row(row: Any) -> tuple[Any, Any]:
    """Replace ``row`` [S] by exp(row - peak); returns the peak and the sum."""
    peak = _largest(row)
    total = np.float32(0)
    for j in range(row.size):
        row[j] = exp(row[j] - peak)
        total += row[j]
    return peak, total


@numba.njit(cache=True, nogil=True, fastmath=FASTMATH)
def sampled_softmax(scores: Any, masked: Any, grad: Any, scale: Any) -> float:
    """Sum over rows of -ln softmax(scores)[0] over unmasked columns; fills ``grad`` [b, S] with scale x its own."""
    loss = 0.0
    for i in range(scores.shape[0]):
        row = grad[i]
        for j in range(row.size):
            row[j] = LOWEST if masked[i, j] else scores[i, j]
        peak, total = softmax_row(row)
        loss += math.log(total) + peak - scores[i, 0]
        factor = scale / total
        for j in range(row.size):
            row[j] = np.float32(0) if masked[i, j] else row[j] * factor
        row[0] -= scale
    return loss


@numba.njit(cache=True, nogil=True, fastmath=FASTMATH)
def peer_sums(scores: Any, present: Any, total: Any, count: Any) -> None:
    """Fill ``total`` [b, S], the sum over modalities of scores [M, b, S] where present, and ``count``, how many are."""
    for i in range(total.shape[0]):
        for m in range(scores.shape[0]):
            for j in range(total.shape[1]):
                there = present[m, i, j]
                total[i, j] = (total[i, j] if m > 0 else np.float32(0)) + (
                    scores[m, i, j] if there else np.float32(0)
                )
                count[i, j] = (count[i, j] if m > 0 else np.float32(0)) + np.float32(there)


@numba.njit(cache=True, nogil=True, inline="always")
def _teacher_row(
    own: Any, total: Any, count: Any, present: Any, masked: Any, soften: Any, teacher: Any
) -> None:
    """Fill ``teacher`` [S] with soften * mean of the other modalities' scores, LOWEST where masked or not judged."""
    for j in range(teacher.size):
        weight = np.float32(present[j])
        others = count[j] - weight
        mean = (total[j] - weight * own[j]) / max(others, np.float32(1))
        teacher[j] = LOWEST if masked[j] or others == 0 else mean * soften


@numba.njit(cache=True, nogil=True, fastmath=FASTMATH)
def mutual_kl(
    student: Any,
    own: Any,
    total: Any,
    count: Any,
    present: Any,
    masked: Any,
    soften: Any,
    scale: Any,
    grad: Any,
) -> float:
    """Sum over rows of KL(softmax of the peers' mean score || softmax of the student's).

    Args:
        student: [b, S].
        own: the student's scores as its peers see them, [b, S] (in ``total`` where present).
        total, count: sums over all modalities, [b, S] (:func:`peer_sums`).
        present: bool [b, S], where the student's modality is present.
        masked: bool [b, S], cells that count on neither side.
        soften: 1 / temperature, on both sides.
        scale: factor of the gradient.
        grad: [b, S], the gradient is added to it.
    """
    columns = student.shape[1]
    teacher, q = np.empty(columns, np.float32), np.empty(columns, np.float32)
    kept, logit = np.empty(columns, np.bool_), np.empty(columns, np.float32)
    factor, loss = soften * scale, 0.0
    for i in range(student.shape[0]):
        _teacher_row(own[i], total[i], count[i], present[i], masked[i], soften, teacher)
        for j in range(columns):
            kept[j] = teacher[j] != LOWEST  # NaN counts, and shows
            q[j] = student[i, j] * soften if kept[j] else LOWEST
            logit[j] = teacher[j] - q[j]  # ln p - ln q, but for the two normalisers
        teacher_peak, teacher_total = softmax_row(teacher)
        student_peak, student_total = softmax_row(q)
        shift = np.float32(math.log(student_total) + student_peak - math.log(teacher_total) - teacher_peak)
        row = np.float32(0)
        for j in range(columns):
            p = teacher[j] / teacher_total
            row += p * (logit[j] + shift) if kept[j] else np.float32(0)
            grad[i, j] += (q[j] / student_total - p) * factor if kept[j] else np.float32(0)
        loss += float(row)
    return loss
