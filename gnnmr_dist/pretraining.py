"""The stage before the loop that PMGT needs: its transformer learns from the item graph, then fills the item table.

A pure function of data, settings and seed. Every worker does it all, on one thread, and takes rank 0's result, so any
number of workers trains from the same bits. A run that resumes has it all in its checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gnnmr_dist.config import Settings
from gnnmr_dist.data.dataset import FeatureTable
from gnnmr_dist.data.graph import Graph
from gnnmr_dist.data.item_graph import Ranked, co_interactions, two_hops
from gnnmr_dist.data.steps import gather_rows
from gnnmr_dist.distributed.mesh import Mesh
from gnnmr_dist.models.encoder import Network
from gnnmr_dist.models.pmgt import CONTEXT, PMGT, Reconstruction, neighbour_loss
from gnnmr_dist.randomness import Purpose, derive, generator

if TYPE_CHECKING:
    from gnnmr_dist.fitting import Session

BATCH = 256
"""Target items of a step (assumed)."""
MASKED = 0.2
"""Share of the context's nodes whose features are hidden (assumed)."""

Int64Array = npt.NDArray[np.int64]
Report = Callable[[dict[str, Any]], None]


def pretrain_session(session: Session, record: Report) -> None:
    """What comes before the first step; a checkpoint, which is always of a later one, holds what it gave."""
    if session.state.finished is not None or (session.state.epoch, session.state.step) != (0, 0):
        return
    graph, settings, mesh = session.dataset.graph, session.settings, session.mesh
    for model in session.models:
        report = record if mesh.rank == 0 else _nothing
        pretrain(model.encoder, graph, session.tables[model.number], settings, mesh, report)


def _nothing(record: dict[str, Any]) -> None:
    del record


def pretrain(
    network: Network,
    graph: Graph,
    tables: Sequence[FeatureTable],
    settings: Settings,
    mesh: Mesh,
    report: Report,
) -> None:
    """Pre-train in place what has something to pre-train; nothing else is touched.

    Args:
        network: of one member.
        graph: the train graph.
        tables: of the modalities it reads.
        settings: all settings.
        mesh: whose rank 0 decides.
        report: takes a record after every epoch (on every worker).
    """
    if not isinstance(network, PMGT):
        return
    with one_thread():
        stage = _Stage(network, tables, co_interactions(graph), settings)
        stage.run(report)
        table = stage.item_vectors()
    with torch.no_grad():
        network.vectors.copy_(table)
        for parameter in (network.vectors, *network.transformer.parameters()):
            if mesh.rank != 0:
                parameter.zero_()
            mesh.sum_world(parameter.data)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that sums do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Stage:
    network: PMGT
    tables: Sequence[FeatureTable]
    near: Ranked
    settings: Settings

    def __post_init__(self) -> None:
        self.contexts = two_hops(self.near)
        self.first = next(self.network.transformer.parameters())

    def run(self, report: Report) -> None:
        """All epochs; a record after each."""
        seed, how = self.settings.training.seed, self.settings.pretraining
        body = self.network.transformer.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, Purpose.PRETRAINING, 0) % 2**63)
            guess = Reconstruction(self.network.kinds, self.first.shape[-1])
        guess.to(self.first.device, self.first.dtype)
        optimizer = torch.optim.Adam([*body.parameters(), *guess.parameters()], how.pretrain_learning_rate)
        linked = np.flatnonzero(self.near.items[:, 0] >= 0)
        for epoch in range(how.pretrain_epochs if linked.size else 0):
            started, sums, steps = time.perf_counter(), np.zeros(2), 0
            random = generator(seed, Purpose.PRETRAINING, 1, epoch)
            order = random.permutation(linked)
            for start in range(0, order.size, BATCH):
                losses = self._losses(guess, order[start : start + BATCH], random)
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
                sums, steps = sums + losses.detach().cpu().numpy(), steps + 1
            names = ("neighbours", "features")
            means = dict(zip(names, (sums / steps).tolist(), strict=True))
            seconds = time.perf_counter() - started
            report({"kind": "pretraining", "epoch": epoch, "seconds": seconds, "losses": means})
        body.requires_grad_(False)

    def _losses(self, guess: Reconstruction, targets: Int64Array, random: np.random.Generator) -> Tensor:
        neighbours = self.near.sample(targets, 1, random)[:, 0]
        both = np.concatenate([targets, neighbours])
        tokens = np.column_stack([both, self.contexts.sample(both, CONTEXT, random)])
        masked = (random.random(tokens.shape) < MASKED) & (tokens >= 0)
        masked[:, 0] = False
        h = self._encode(tokens, masked)
        n = targets.size
        near = neighbour_loss(h[:n, 0], h[n:, 0])
        places = np.flatnonzero(masked.ravel())
        if places.size == 0:
            return torch.stack([near, near.detach() * 0])
        hidden = h.flatten(0, 1)[torch.from_numpy(places).to(h.device)]
        return torch.stack([near, guess(hidden, self._rows(tokens.ravel()[places]))])

    def _rows(self, items: Int64Array) -> list[Any]:
        return [gather_rows(table, items).to(self.first.device) for table in self.tables]

    def _encode(self, tokens: Int64Array, masked: npt.NDArray[np.bool_] | None = None) -> Tensor:
        """Vectors [n, T, d] of tokens [n, T] (item numbers, -1 = none); every item's features are made once."""
        items, place = np.unique(np.maximum(tokens, 0), return_inverse=True)
        device = self.first.device
        features = self.network.transformer.features(self._rows(items))
        index = torch.from_numpy(place.reshape(-1)).to(device)
        every = torch.index_select(features, 0, index).unflatten(0, tokens.shape)
        valid = torch.from_numpy(tokens >= 0).to(device)
        hidden = None if masked is None else torch.from_numpy(masked).to(device)
        out: Tensor = self.network.transformer(every, valid, hidden)
        return out

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """[I, d] of all items, each with the most important others as its context."""
        parts = []
        for start in range(0, self.near.items.shape[0], BATCH):
            items = np.arange(start, min(start + BATCH, self.near.items.shape[0]))
            tokens = np.column_stack([items, self.contexts.first(items, CONTEXT)])
            parts.append(self.network.scaled(self._encode(tokens)[:, 0]))
        return torch.cat(parts)
