"""VBPR: matrix factorisation beside a factorisation of item features (He and McAuley 2016, AAAI).

Theirs: s(u, i) = b_i + g_u . g_i + theta_u . (E f_i) + beta' f_i, trained by BPR (their global offset and user bias
cancel in it). Ours: f_i is all modalities of the item one after the other, so that E f_i is the sum of a projection of
each (look-ups for categories and bags); a learned vector stands for a missing one; sampled negatives, Adam and
selection are those of every method here.

Axes: n nodes, d width of the factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnmr_dist.models.encoder import Encoder, NodeBatch
from gnnmr_dist.models.id_tables import Maker, random_table
from gnnmr_dist.models.inputs import ItemInput, ItemRows, Kind


class VBPR(Encoder):
    """The score as one product: users [g_u, theta_u, 1, 1], items [g_i, E f_i, b_i, beta' f_i], 2 d + 2 numbers each.

    The users' table holds [g_u, theta_u] [U, 2d]; the items' [g_i, b_i] [I, d + 1], b_i starting at zero.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        inputs: Sequence[tuple[Kind, int]],
        *,
        width: int,
        make: Maker = torch.zeros,
    ) -> None:
        super().__init__(num_users, num_items, inputs, (), embedding_dim=width, item_id="none", make=make)
        self.width = width
        self.user_input.table = random_table(num_users, 2 * width, make)
        self.item_table = random_table(num_items, width + 1, make)
        with torch.no_grad():
            self.user_input.table.mul_(2**0.5)  # each half as long as the items' factors
            self.item_table[:, width] = 0
        self.beta = nn.ModuleList(ItemInput(kind, size, 1) for kind, size in inputs)
        for module in self.beta:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def users(self, users: Tensor) -> Tensor:
        """[n, 2d + 2]."""
        factors: Tensor = self.user_input(users)
        return torch.cat([factors, factors.new_ones(users.numel(), 2)], dim=1)

    def items(self, items: Tensor, rows: Sequence[ItemRows]) -> Tensor:
        """[n, 2d + 2]."""
        assert self.item_table is not None
        factors, bias = functional.embedding(items, self.item_table, sparse=True).split(
            [self.width, 1], dim=1
        )
        return torch.cat([factors, *self._content(rows, bias)], dim=1)

    def featured_items(self, rows: Sequence[ItemRows], n: int) -> Tensor:
        """[n, 2d + 2] without factors and bias of their own."""
        nothing = self.user_input.table.new_zeros(n, self.width)
        return torch.cat([nothing, *self._content(rows, nothing[:, :1])], dim=1)

    def _content(self, rows: Sequence[ItemRows], bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projected = [module(some) for module, some in zip(self.item_inputs, rows, strict=True)]
        single = [module(some) for module, some in zip(self.beta, rows, strict=True)]
        return torch.stack(projected).sum(dim=0), bias, torch.stack(single).sum(dim=0)

    def placed_inputs(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> Tensor:
        """[n, 2d + 2] of the batch's users and items, each at its place."""
        both = torch.cat([self.users(batch.users), self.items(batch.items, rows)])
        places = torch.cat([batch.user_places, batch.item_places])
        return both.new_empty(both.shape).index_copy(0, places, both)
