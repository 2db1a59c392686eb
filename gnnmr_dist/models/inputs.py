"""From one modality's rows to node inputs h^(0): dense vectors, category codes, bags of codes, missing rows.

Axes: n items of a batch, d embedding size, F length of a dense feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnmr_dist.models.blocks import Block, weighted_sum
from gnnmr_dist.models.rows import fill_missing

Kind = Literal["dense", "category", "bag"]


@dataclass(frozen=True)
class ItemRows:
    """One modality's rows of n items.

    ``present`` bool [n]; dense: ``values`` [n, F]; category: ``values`` int64 [n] (anything where missing);
    bag: ``values`` int64 codes of all items one after the other and ``offsets`` int64 [n + 1], where each begins and
    the last ends. ``complete`` where it is known that all are present.
    """

    present: Tensor
    values: Tensor
    offsets: Tensor | None = None
    complete: bool = False

    def to(self, device: torch.device) -> ItemRows:
        """The same rows on a device."""
        offsets = None if self.offsets is None else self.offsets.to(device, non_blocking=True)
        present, values = (t.to(device, non_blocking=True) for t in (self.present, self.values))
        return ItemRows(present, values, offsets, self.complete)


class ItemInput(nn.Module):
    """Items' inputs [n, d]: a linear projection (dense) or an embedding look-up (category; bag: the mean).

    An item without the modality gets one learned vector. Never a dense one-hot matrix.
    """

    def __init__(self, kind: Kind, size: int, embedding_dim: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "dense":
            self.project = nn.Linear(size, embedding_dim)
            nn.init.xavier_uniform_(self.project.weight)
            nn.init.zeros_(self.project.bias)
        else:
            self.codes = nn.Parameter(torch.randn(size, embedding_dim) * embedding_dim**-0.5)
        self.missing = nn.Parameter(torch.randn(embedding_dim) * embedding_dim**-0.5)

    def forward(self, rows: ItemRows) -> Tensor:
        """[n, d]."""
        known = self._known(rows)
        return known if rows.complete else fill_missing(known, rows.present, self.missing)

    def _known(self, rows: ItemRows) -> Tensor:
        if self.kind == "dense":
            projected: Tensor = self.project(rows.values.to(self.project.weight.dtype))
            return projected
        if self.kind == "category":
            return functional.embedding(rows.values.clamp(min=0), self.codes)
        assert rows.offsets is not None
        length = rows.offsets.diff().clamp(min=1).to(self.codes.dtype)
        bags = Block(rows.offsets, rows.values, length)
        share = (1 / length)[bags.destination].unsqueeze(1)
        return weighted_sum(share, self.codes.unsqueeze(1), bags).squeeze(1)


class UserInput(nn.Module):
    """Users' inputs: a trained ID vector each (the paper's user ID embedding), [U, d]."""

    def __init__(self, num_users: int, embedding_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_users, embedding_dim) * embedding_dim**-0.5)

    def forward(self, users: Tensor) -> Tensor:
        """[n, d] for user numbers [n]."""
        return functional.embedding(users, self.table, sparse=True)
