"""ID tables: one trained row per user or item, wherever its rows lie.

A *maker* makes a tensor of zeros, taking what ``torch.zeros`` takes (a shape, then ``dtype`` and ``device``): that
function itself, or one whose tensors lie in mapped files (gnnmr_dist/mapped.py). No result depends on the maker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

Maker = Callable[..., Tensor]

NUMBERS_AT_ONCE = 1 << 20
"""A multiple of 16: torch draws normal numbers sixteen at a time, so slices of whole sixteens continue one another."""


def random_table(rows: int, width: int, make: Maker = torch.zeros) -> nn.Parameter:
    """A table [rows, width] of normal numbers of variance 1 / width: ``torch.randn(rows, width) / sqrt(width)``.

    Drawn in slices, in float32 whatever the table's dtype, with the very numbers of one call.
    """
    table = make((rows, width))
    numbers, total = table.view(-1), table.numel()
    starts = [
        *range(0, max(total - 15, 1), NUMBERS_AT_ONCE),
        total,
    ]  # torch draws fewer than 16 in another way
    for start, stop in pairwise(starts):
        numbers[start:stop] = torch.randn(stop - start) * width**-0.5
    return nn.Parameter(table)


def keep(tensors: Mapping[str, Tensor], kept: dict[str, Tensor], make: Maker) -> None:
    """Copy tensors into ``kept``: over what it has of the same name, else to where ``make`` makes them."""
    for name, tensor in tensors.items():
        if name not in kept:
            kept[name] = make(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        kept[name].copy_(tensor)
