"""Small makers that several test files share: graphs, feature tables, steps, models, planted data sets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnmr_dist.config import Settings, build
from gnnmr_dist.data.batches import global_batch
from gnnmr_dist.data.dataset import Dataset, ModalityInfo, open_dataset
from gnnmr_dist.data.feature_tables import BagTable, CategoryTable, DenseTable, FeatureTable
from gnnmr_dist.data.graph import Graph, build_graph
from gnnmr_dist.data.sampling import NeighborSampling
from gnnmr_dist.data.steps import StepData, gather_rows, slice_block, step_data
from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.distributed.mesh import Mesh, one_process
from gnnmr_dist.members import Member
from gnnmr_dist.models.blocks import Block
from gnnmr_dist.models.encoder import NodeBatch
from gnnmr_dist.models.inputs import ItemRows
from gnnmr_dist.training import ModalityModel, build_model, train_step

ENCODERS = ("gat", "gatv2", "gcn", "sage", "lightgcn")
COMBINATIONS = ("mean", "last", "concat")


def random_graph(seed: int = 0, num_users: int = 7, num_items: int = 6, num_edges: int = 20) -> Graph:
    keys = np.random.default_rng(seed).permutation(num_users * num_items)[:num_edges]
    users, items = np.divmod(keys, num_items)
    return build_graph(users, items, num_users, num_items)


def whole_block(graph: Graph, dtype: torch.dtype = torch.float32) -> Block:
    """All edges of the graph; sources and destinations are all nodes."""
    return slice_block(graph, range(graph.num_nodes), torch.from_numpy(graph.degree()).to(dtype))


def edge_index(graph: Graph) -> Tensor:
    """PyG's [2, 2E]: sources, then targets."""
    target = np.repeat(np.arange(graph.num_nodes), graph.degree())
    return torch.from_numpy(np.stack([graph.indices.astype(np.int64), target]))


def whole_batch(graph: Graph, num_layers: int) -> NodeBatch:
    """The full-graph forward as a batch: every node is a seed."""
    return NodeBatch(
        torch.arange(graph.num_users),
        torch.arange(graph.num_items),
        torch.arange(graph.num_users),
        torch.arange(graph.num_users, graph.num_nodes),
        (whole_block(graph),) * num_layers,
    )


def dense_table(num_items: int, dim: int = 5, seed: int = 0, missing: tuple[int, ...] = ()) -> DenseTable:
    values = np.random.default_rng(seed).standard_normal((num_items, dim), np.float32)
    present = ~np.isin(np.arange(num_items), missing)
    return DenseTable(values * present[:, None], present)


def category_table(num_items: int, missing: tuple[int, ...] = ()) -> CategoryTable:
    present = ~np.isin(np.arange(num_items), missing)
    return CategoryTable(np.where(present, np.arange(num_items) % 3, -1).astype(np.int32), present)


def bag_table(num_items: int, missing: tuple[int, ...] = ()) -> BagTable:
    present = ~np.isin(np.arange(num_items), missing)
    lengths = np.where(present, 1 + np.arange(num_items) % 3, 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return BagTable(offsets, (np.arange(offsets[-1]) % 4).astype(np.int32), present)


def all_rows(table: FeatureTable) -> ItemRows:
    return gather_rows(table, np.arange(table.num_rows))


def make_settings(**sections: dict[str, Any]) -> Settings:
    """Settings of a tiny run, changed as told: ``make_settings(loss={"distill_weight": 0})``."""
    base: dict[str, dict[str, Any]] = {
        "model": {"embedding_dim": 8},
        "loss": {"num_candidates": 5},
        "sampling": {"num_neighbors": [-1, -1]},
        "training": {"global_batch_size": 8, "learning_rate": 0.01},
        "evaluation": {"ks": [5, 10], "select_metric": "Recall@5"},
    }
    return build(("tests", base), ("test", sections))


@dataclass(frozen=True)
class World:
    """A graph and M feature tables in memory, and one step of training on them."""

    graph: Graph
    tables: tuple[FeatureTable, ...]
    settings: Settings

    @property
    def present(self) -> Tensor:
        return torch.from_numpy(np.stack([table.present for table in self.tables]))

    def models(self) -> list[ModalityModel]:
        shape = (self.graph.num_users, self.graph.num_items)
        made = []
        for m, table in enumerate(self.tables):
            kind, size = _kind(table)
            member = Member(f"m{m}", (ModalityInfo(f"m{m}", kind, size, "float32", 0),))
            made.append(build_model(m, member, shape, self.settings, torch.device("cpu")))
        return made

    def step(self, step: int = 0, epoch: int = 0, replica: int = 0, replicas: int = 1) -> StepData:
        settings = self.settings
        batch = global_batch(
            self.graph,
            settings.training.seed,
            epoch,
            step,
            batch_size=settings.training.global_batch_size,
            num_candidates=settings.loss.num_candidates,
        )
        sampler = NeighborSampling(self.graph, settings.sampling.num_neighbors, settings.training.seed)
        return step_data(
            self.graph,
            sampler,
            batch,
            replica=replica,
            replicas=replicas,
            with_negatives=settings.loss.supervised == "bpr",
            exclude_supervision=settings.sampling.exclude_supervision,
        )

    def rows(self, data: StepData) -> list[list[ItemRows]]:
        return [[gather_rows(table, data.nodes.items.numpy())] for table in self.tables]

    def train(self, models: list[ModalityModel], data: StepData, mesh: Mesh | None = None) -> Tensor:
        mesh = mesh or one_process(len(self.tables))
        present = None if bool(self.present.all()) else self.present
        return train_step(models, data, self.rows(data), present, mesh, self.settings)


def _kind(table: FeatureTable) -> tuple[Any, int]:
    if isinstance(table, DenseTable):
        return "dense", table.values.shape[1]
    return ("category", 3) if isinstance(table, CategoryTable) else ("bag", 4)


def make_world(missing: tuple[int, ...] = (), num_modalities: int = 2, **sections: dict[str, Any]) -> World:
    """Two dense modalities (a third would be a category) on a random graph of 13 nodes."""
    graph = random_graph()
    tables: list[FeatureTable] = [
        dense_table(graph.num_items, 5, seed=1, missing=missing),
        dense_table(graph.num_items, 4, seed=2),
        category_table(graph.num_items),
    ]
    return World(graph, tuple(tables[:num_modalities]), make_settings(**sections))


def without_edge(graph: Graph, user: int, item: int) -> Graph:
    users, items = graph.edges(np.arange(graph.num_edges))
    kept = (users != user) | (items != item)
    return build_graph(users[kept], items[kept], graph.num_users, graph.num_items)


def with_graph(world: World, graph: Graph) -> World:
    return replace(world, graph=graph)


def planted(folder: Path, num_modalities: int = 2, **arguments: Any) -> Dataset:
    """A planted data set of 30 users and 64 items."""
    sizes = {"num_users": 30, "num_items": 64, "interactions_per_user": 8, "cold_users": 2, "cold_items": 2}
    synthetic_dataset(folder, num_modalities=num_modalities, feature_dim=6, **(sizes | arguments))
    return open_dataset(folder)


def weights_of(model: ModalityModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.encoder.named_parameters()}
