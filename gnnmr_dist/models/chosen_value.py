"""What a method in closed form keeps: the one value that validation chose (``baselines.CLOSED_FORM``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from gnnmr_dist.models.encoder import Encoder, Network, NodeBatch
from gnnmr_dist.models.inputs import ItemRows


class ChosenValue(Network):
    """A member whose only weight is that value [1], never moved by a gradient; it has no embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1), requires_grad=False)

    @property
    def branches(self) -> Sequence[tuple[Encoder, Sequence[int]]]:
        """None."""
        return ()

    def fuse(self, parts: Sequence[Tensor]) -> NoReturn:
        """Not possible."""
        raise TypeError("a method in closed form has no embeddings")

    def forward(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> NoReturn:
        """Not possible."""
        raise TypeError("a method in closed form has no embeddings")

    def id_tables(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def id_rows(self, batch: NodeBatch) -> dict[str, Tensor]:
        """None."""
        return {}
