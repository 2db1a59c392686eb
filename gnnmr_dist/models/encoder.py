"""The encoder of one modality: node inputs, L layers of message passing, one embedding per node.

Axes: U users, I items, N = U + I nodes, n nodes of a sampled graph (the s seeds first), d embedding size, L layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gnnmr_dist.models.blocks import Block
from gnnmr_dist.models.id_tables import Maker, random_table
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


class Network(nn.Module, ABC):
    """What a member trains: one or more encoders on the same graph, and how their embeddings of a node become one."""

    @property
    @abstractmethod
    def branches(self) -> Sequence[tuple[Encoder, Sequence[int]]]:
        """The encoders, and for each the places, among the member's modalities, of those it reads."""

    @abstractmethod
    def fuse(self, parts: Sequence[Tensor]) -> Tensor:
        """One embedding per node [n, d'] from those of every branch, each [n, d]; row by row."""

    @abstractmethod
    def forward(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> Tensor:
        """Embeddings of the seeds [s, d']; ``rows``: those of the batch's items in every modality the member reads."""

    @abstractmethod
    def id_tables(self) -> dict[str, nn.Parameter]:
        """The ID tables by name; their gradients are sparse, one row per node of the batch."""

    @abstractmethod
    def id_rows(self, batch: NodeBatch) -> dict[str, Tensor]:
        """The rows of every ID table that a forward pass reads, by the table's name."""


class Encoder(Network):
    """h^(0) from user IDs and item features, then layers, then their combination.

    Items have any number of modalities, whose inputs are added and divided by the root of their number (a projection
    of the concatenated features), and an ID vector if ``item_id`` says so; without modalities, always.
    """

    def __init__(
        self,
        num_users: int,
        num_items: int,
        inputs: Sequence[tuple[Kind, int]],
        layers: Sequence[Layer],
        *,
        embedding_dim: int,
        combination: Literal["mean", "last", "concat"] = "mean",
        activation: Literal["none", "elu", "leaky_relu", "relu"] = "none",
        item_id: ItemID = "none",
        make: Maker = torch.zeros,
    ) -> None:
        super().__init__()
        self.user_input = UserInput(num_users, embedding_dim, make)
        self.item_inputs = nn.ModuleList(ItemInput(kind, size, embedding_dim) for kind, size in inputs)
        self.item_id = item_id if inputs else "all"
        self.item_table = None
        if self.item_id != "none":
            self.item_table = random_table(num_items, embedding_dim, make)
        self.layers = nn.ModuleList(layers)
        self.combination, self.activation = combination, activation

    def users(self, users: Tensor) -> Tensor:
        """h^(0) [n, d] of users with numbers ``users`` [n]."""
        out: Tensor = self.user_input(users)
        return out

    @property
    def branches(self) -> Sequence[tuple[Encoder, Sequence[int]]]:
        """Itself, reading everything."""
        return [(self, range(len(self.item_inputs)))]

    def fuse(self, parts: Sequence[Tensor]) -> Tensor:
        """The only part."""
        (only,) = parts
        return only

    def items(self, items: Tensor, rows: Sequence[ItemRows]) -> Tensor:
        """h^(0) [n, d] of items with numbers ``items`` [n] and these rows, one of each modality."""
        ids = None if self.item_table is None else functional.embedding(items, self.item_table, sparse=True)
        if not self.item_inputs:
            assert ids is not None
            return ids
        if ids is not None and self.item_id == "missing":
            present = torch.stack([some.present for some in rows]).any(dim=0)
            ids = ids * (~present).unsqueeze(1).to(ids.dtype)
        h = self.featured_items(rows, items.numel())
        return h if ids is None else h + ids

    def featured_items(self, rows: Sequence[ItemRows], n: int) -> Tensor:
        """h^(0) [n, d] of n items unknown to training: of their features alone, without ID vectors (neither: 0)."""
        if not self.item_inputs:
            return self.user_input.table.new_zeros(n, self.user_input.table.shape[1])
        parts = [module(some) for module, some in zip(self.item_inputs, rows, strict=True)]
        total: Tensor = parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0) * len(parts) ** -0.5
        return total

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

    def placed_inputs(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> Tensor:
        """h^(0) of the batch's users and items [n, d], each at its place among the blocks' nodes."""
        items, table = self.items(batch.items, rows), self.user_input.table
        return place_rows(table, batch.users, items, batch.user_places, batch.item_places)

    def forward(self, batch: NodeBatch, rows: Sequence[ItemRows]) -> Tensor:
        """Embeddings of the seeds, [s, d]; only rows that a later layer needs are computed."""
        return self.propagate(self.placed_inputs(batch, rows), batch)

    def propagate(self, h: Tensor, batch: NodeBatch) -> Tensor:
        """Embeddings of the seeds [s, d] from h^(0) [n, d] of the batch's nodes."""
        found = []
        for layer, block in zip(self.layers, reversed(batch.blocks), strict=True):
            h, front = with_front(h, batch.blocks[0].num_destinations)
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
