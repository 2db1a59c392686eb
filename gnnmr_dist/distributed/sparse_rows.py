"""Gradients of ID tables on their way between replicas: rows and values of several tables as one message.

A message holds the row numbers (int64) of every table, then the values of every table, and is a multiple of 8 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 8


def bytes_of(counts: Sequence[int], like: Sequence[Tensor]) -> int:
    """Bytes of a message with ``counts`` rows of each of the tables whose gradients are ``like`` [N, d]."""
    size = sum(n * (8 + g.shape[1] * g.element_size()) for n, g in zip(counts, like, strict=True))
    return -(-size // ALIGNED) * ALIGNED


def as_bytes(gradients: Sequence[Tensor]) -> Tensor:
    """The message of sparse gradients [N, d], all of one dtype, uint8 [:func:`bytes_of`]."""
    parts = [g._indices()[0] for g in gradients] + [g._values() for g in gradients]
    flat = [part.contiguous().view(-1).view(torch.uint8) for part in parts]
    missing = bytes_of([g._nnz() for g in gradients], gradients) - sum(part.numel() for part in flat)
    return torch.cat([*flat, flat[0].new_zeros(missing)])


def from_bytes(message: Tensor, counts: Sequence[int], like: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Rows [n] and values [n, d] of each table, as views of a message or of a longer one that begins with it."""
    sizes = [8 * n for n in counts]
    sizes += [n * g.shape[1] * g.element_size() for n, g in zip(counts, like, strict=True)]
    parts = message[: sum(sizes)].split(sizes)
    rows = [part.view(torch.int64) for part in parts[: len(counts)]]
    values = [
        part.view(g.dtype).view(n, g.shape[1])
        for part, n, g in zip(parts[len(counts) :], counts, like, strict=True)
    ]
    return list(zip(rows, values, strict=True))


def sum_of_rows(parts: Sequence[tuple[Tensor, Tensor]], shape: torch.Size) -> Tensor:
    """The sum of sparse gradients of ``shape`` [N, d], each given by its rows, which are distinct, and values.

    Added in order, so the same parts give the same bits; the result has every row once, ascending.
    """
    union = torch.cat([rows for rows, _ in parts]).unique()
    total = parts[0][1].new_zeros(union.numel(), *parts[0][1].shape[1:])
    for rows, values in parts:
        total[torch.searchsorted(union, rows)] += values
    return torch.sparse_coo_tensor(
        union.unsqueeze(0), total, shape, is_coalesced=True, check_invariants=False
    )
