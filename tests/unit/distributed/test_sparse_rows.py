"""Sparse gradients as one message: what comes out is what went in, and sums are those of dense gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnnmr_dist.distributed.sparse_rows import ALIGNED, as_bytes, bytes_of, from_bytes, sum_of_rows

TABLES = ((9, 3), (4, 5), (7, 1))


def sparse(rows: list[int], shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(len(rows), shape[1], dtype=dtype)
    index = torch.tensor([rows], dtype=torch.int64)
    return torch.sparse_coo_tensor(index, values, shape, is_coalesced=True, check_invariants=False)


def gradients(which: list[list[int]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [sparse(rows, shape, dtype) for rows, shape in zip(which, TABLES, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "which", [[[0, 8], [1, 2, 3], [6]], [[], [], []], [[], [0], []], [[1, 2, 3], [], [5]]]
)
def test_a_message_holds_rows_and_values_of_every_table(which: list[list[int]], dtype: torch.dtype) -> None:
    given = gradients(which, dtype)
    counts = [len(rows) for rows in which]
    message = as_bytes(given)
    assert message.numel() == bytes_of(counts, given)
    assert message.numel() % ALIGNED == 0
    longer = torch.cat([message, message.new_zeros(24)])
    for some in (message, longer):
        for (rows, values), gradient in zip(from_bytes(some, counts, given), given, strict=True):
            assert torch.equal(rows, gradient._indices()[0])
            assert torch.equal(values, gradient._values())


def test_the_size_is_the_formula() -> None:
    """Row numbers of 8 bytes, rows of 3, 5 and 1 floats: 40 + 84 + 12 bytes, a multiple of 8."""
    given = gradients([[0, 8], [1, 2, 3], [6]])
    assert bytes_of([2, 3, 1], given) == 2 * (8 + 12) + 3 * (8 + 20) + 12 == 136


def test_a_sum_is_that_of_dense_gradients_and_has_each_row_once() -> None:
    shape = torch.Size((9, 3))
    some = [sparse(rows, (9, 3)) for rows in ([1, 4, 8], [], [0, 4])]
    total = sum_of_rows([(g._indices()[0], g._values()) for g in some], shape)
    assert total._indices()[0].tolist() == [0, 1, 4, 8]
    torch.testing.assert_close(total.to_dense(), sum(g.to_dense() for g in some))


def test_a_sum_of_nothing_is_empty() -> None:
    empty = sparse([], (9, 3))
    total = sum_of_rows([(empty._indices()[0], empty._values())] * 2, torch.Size((9, 3)))
    assert total._nnz() == 0
