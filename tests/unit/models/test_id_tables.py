"""ID tables: the numbers of one call of torch.randn, whoever makes the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnnmr_dist.models import id_tables
from gnnmr_dist.models.id_tables import keep, random_table


def doubles(size: tuple[int, ...]) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (4, 4), (8, 6), (33, 1), (100, 64), (1001, 7)])
@pytest.mark.parametrize("at_once", [16, 48, 1 << 20])
def test_slices_are_the_numbers_of_one_call(
    shape: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_tables, "NUMBERS_AT_ONCE", at_once)
    torch.manual_seed(3)
    expected, after = torch.randn(shape) * shape[1] ** -0.5, torch.randn(20)
    torch.manual_seed(3)
    table = random_table(*shape)
    assert torch.equal(table, expected)
    assert torch.equal(torch.randn(20), after)  # what is drawn next is the same too
    torch.manual_seed(3)
    wide = random_table(*shape, doubles)
    assert wide.dtype == torch.float64
    assert torch.equal(wide, expected.double())


def test_kept_tensors_are_overwritten_where_they_lie() -> None:
    kept: dict[str, Tensor] = {}
    keep({"a": torch.ones(2, 3), "b": torch.tensor(4)}, kept, torch.zeros)
    place = kept["a"].data_ptr()
    keep({"a": torch.full((2, 3), 7.0)}, kept, torch.zeros)
    assert kept["a"].data_ptr() == place
    assert kept["a"].eq(7).all()
    assert (kept["b"], kept["b"].dtype) == (torch.tensor(4), torch.int64)
