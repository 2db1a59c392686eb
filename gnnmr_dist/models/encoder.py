"""The encoder of one modality: node inputs, L layers of message passing, one embedding per node.

Axes: U users, I items, N = U + I nodes, n nodes of a sampled graph (the s seeds first), d embedding size, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnmr_dist.models.blocks import Block
from gnnmr_dist.models.inputs import ItemInput, ItemRows, Kind, UserInput
from gnnmr_dist.models.layers import GATLayer, GATv2Layer, GCNLayer, Layer, LightGCNLayer, SAGELayer
from gnnmr_dist.models.rows import mean_of, place_rows, unit_rows, with_front

ItemID = Literal["none", "missing", "all"]


@dataclass(frozen=True)
class NodeBatch:
    """Which nodes a forward pass needs, and their links.

    ``users`` and ``items`` are the numbers of its user and item nodes, ``user_places`` and ``item_places`` where they
    stand among the blocks' nodes; ``blocks[h]`` is hop h (0 = into the seeds).
    """

    users: Tensor
    items: Tensor
    user_places: Tensor
    item_places: Tensor
    blocks: tuple[Block, ...]

    def to(self, device: torch.device) -> NodeBatch:
        """The same batch on a device."""
        return NodeBatch(
            self.users.to(device, non_blocking=True),
            self.items.to(device, non_blocking=True),
            self.user_places.to(device, non_blocking=True),
            self.item_places.to(device, non_blocking=True),
            tuple(block.to(device) for block in self.blocks),
        )


class Encoder(nn.Module):
    """h^(0) from user IDs and item features, then layers, then their combination."""

    def __init__(
        self,
        num_users: int,
        num_items: int,
        kind: Kind,
        size: int,
        layers: Sequence[Layer],
        *,
        embedding_dim: int,
        combination: Literal["mean", "last", "concat"] = "mean",
        activation: Literal["none", "elu", "leaky_relu", "relu"] = "none",
        item_id: ItemID = "none",
    ) -> None:
        super().__init__()
        self.user_input = UserInput(num_users, embedding_dim)
        self.item_input = ItemInput(kind, size, embedding_dim)
        self.item_id = item_id
        self.item_table = None
        if item_id != "none":
            self.item_table = nn.Parameter(torch.randn(num_items, embedding_dim) * embedding_dim**-0.5)
        self.layers = nn.ModuleList(layers)
        self.combination, self.activation = combination, activation

    def users(self, users: Tensor) -> Tensor:
        """h^(0) [n, d] of users with numbers ``users`` [n]."""
        out: Tensor = self.user_input(users)
        return out

    def items(self, items: Tensor | None, rows: ItemRows) -> Tensor:
        """h^(0) [n, d] of items; ``items`` None = items unknown to training, which have features but no ID vector."""
        h: Tensor = self.item_input(rows)
        if self.item_table is None or items is None:
            return h
        ids = functional.embedding(items, self.item_table, sparse=True)
        if self.item_id == "missing":
            ids = ids * (~rows.present).unsqueeze(1).to(ids.dtype)
        return h + ids

    def id_tables(self) -> dict[str, nn.Parameter]:
        """The ID tables by name; their gradients are sparse, one row per node of the batch."""
        found = {"user_input.table": self.user_input.table}
        return found if self.item_table is None else found | {"item_table": self.item_table}

    def id_rows(self, batch: NodeBatch) -> dict[str, Tensor]:
        """The rows of every ID table that a forward pass reads, by the table's name."""
        found = {"user_input.table": batch.users}
        return found if self.item_table is None else found | {"item_table": batch.items}

    def activate(self, h: Tensor) -> Tensor:
        """The non-linearity after a layer's sum (Eqs. 3 and 5)."""
        if self.activation == "none":
            return h
        out: Tensor = getattr(functional, self.activation)(h)
        return out

    def combine(self, layers: Sequence[Tensor]) -> Tensor:
        """One embedding from those of layers 0..L, each [n, d]: [n, d], or [n, (L + 1) d] for ``concat``."""
        if self.combination == "last":
            return layers[-1]
        if self.combination == "concat":
            return torch.cat(list(layers), dim=1)
        return mean_of(layers)

    def forward(self, batch: NodeBatch, rows: ItemRows) -> Tensor:
        """Embeddings of the seeds, [s, d]; only rows that a later layer needs are computed."""
        items, table = self.items(batch.items, rows), self.user_input.table
        h = place_rows(table, batch.users, items, batch.user_places, batch.item_places)
        num_seeds, found = batch.blocks[0].num_destinations, []
        for layer, block in zip(self.layers, reversed(batch.blocks), strict=True):
            h, front = with_front(h, num_seeds)
            found.append(front)
            h = self.activate(layer(h, block))
        return self.combine([*found, h])


def make_layer(
    encoder: str,
    width: int,
    *,
    heads: int,
    self_loops: bool,
    negative_slope: float,
    degree_scaling: bool,
    identity: bool,
) -> Layer:
    """A layer by the encoder's name: gat, gatv2, gcn, sage or lightgcn; raises ValueError for another."""
    if encoder in ("gat", "gatv2"):
        attention = GATLayer if encoder == "gat" else GATv2Layer
        return attention(
            width,
            heads=heads,
            self_loops=self_loops,
            negative_slope=negative_slope,
            degree_scaling=degree_scaling,
            identity=identity,
        )
    if encoder == "gcn":
        return GCNLayer(width, identity=identity)
    if encoder == "sage":
        return SAGELayer(width, identity=identity)
    if encoder == "lightgcn":
        return LightGCNLayer()
    raise ValueError(f"unknown encoder {encoder!r}")


def score_vectors(embeddings: Tensor, score: Literal["cosine", "dot"]) -> Tensor:
    """The vectors whose dot product is the score s(u, i) of Eq. 6: themselves, or at unit length for ``cosine``."""
    return unit_rows(embeddings) if score == "cosine" else embeddings
