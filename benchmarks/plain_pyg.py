"""The straightforward PyG script for the same job: what a user would write instead of using this package.

One process; one network of GATConv layers per modality over the same sampled nodes; user and item ID embeddings beside
projected features; sampled softmax over shared candidates, plus the KL to the mean score of the peers; Adam. Neighbours
come from PyG's NeighborLoader: with PyG's own sampler where torch-sparse or pyg-lib is installed, else with this
package's CounterNeighborSampler, and every line of output says which.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch_geometric.typing
from paced import open_modalities, tell, trainer_parser, wait_for_word
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softmax
from torch_geometric.data import Data
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GATConv

from gnnmr_dist.data.pyg_sampler import CounterNeighborSampler

HAS_SAMPLER = torch_geometric.typing.WITH_PYG_LIB or torch_geometric.typing.WITH_TORCH_SPARSE


class Net(nn.Module):
    """One modality: ID vectors and projected features, then attention layers; the mean of all layers, normalised."""

    def __init__(self, num_users: int, features: Tensor, dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_users, self.features = num_users, features
        self.user = nn.Embedding(num_users, dim)
        self.item = nn.Embedding(features.shape[0], dim)
        self.project = nn.Linear(features.shape[1], dim)
        self.layers = nn.ModuleList(GATConv(dim, dim) for _ in range(num_layers))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=dim**-0.5)

    def forward(self, n_id: Tensor, edge_index: Tensor) -> Tensor:
        is_user = n_id < self.num_users
        items = n_id[~is_user] - self.num_users
        h = torch.empty(n_id.numel(), self.user.embedding_dim)
        h[is_user] = self.user(n_id[is_user])
        h[~is_user] = self.item(items) + self.project(self.features[items])
        found = [h]
        for layer in self.layers:
            found.append(layer(found[-1], edge_index))
        return normalize(torch.stack(found).mean(dim=0))


class Script:
    """Data, networks and optimizers of a run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        dataset = open_modalities(options.dataset, options.modalities)
        self.num_users, self.num_items = dataset.num_users, dataset.num_items
        pairs = {}
        for split in ("train", "valid"):
            found = dataset.interactions(split)
            pairs[split] = torch.tensor(found.users).long(), torch.tensor(found.items).long()
        self.users, self.items = pairs["train"]
        edges = torch.stack([self.users, self.items + self.num_users])
        self.data = Data(edge_index=torch.cat([edges, edges.flip(0)], dim=1))
        self.data.num_nodes = self.num_users + self.num_items
        self.known, self.truth = (
            torch.zeros(self.num_users, self.num_items, dtype=torch.bool) for _ in range(2)
        )
        self.known[pairs["train"]] = True
        self.truth[pairs["valid"]] = True
        sampler = None if HAS_SAMPLER else CounterNeighborSampler(self.data, options.fan_out, options.seed)
        self.loader = NeighborLoader(self.data, options.fan_out, neighbor_sampler=sampler)
        features = [torch.tensor(dataset.features(info.name).values).float() for info in dataset.modalities]
        self.nets = [Net(self.num_users, f, options.dim, len(options.fan_out)) for f in features]
        self.optimizers = [torch.optim.Adam(net.parameters(), lr=options.learning_rate) for net in self.nets]

    def step(self, users: Tensor, items: Tensor) -> None:
        """One batch: sample once, score with every network, then one update each."""
        candidates = torch.randperm(self.num_items)[: self.options.candidates]
        wanted = torch.cat([users, items + self.num_users, candidates + self.num_users])
        seeds, place = wanted.unique(return_inverse=True)
        u, i, c = place.split([users.numel(), items.numel(), candidates.numel()])
        batch = self.loader(seeds)
        unknown = torch.zeros(users.numel(), 1, dtype=torch.bool)
        masked = torch.cat([unknown, self.known[users][:, candidates]], dim=1)
        scores = []
        for net in self.nets:
            h = net(batch.n_id, batch.edge_index)
            own = torch.cat([(h[u] * h[i]).sum(dim=1, keepdim=True), h[u] @ h[c].T], dim=1)
            scores.append((own / self.options.temperature).masked_fill(masked, -1e9))
        total = torch.stack([own.detach() for own in scores]).sum(dim=0)
        for own, optimizer in zip(scores, self.optimizers, strict=True):
            loss = cross_entropy(own, torch.zeros(users.numel(), dtype=torch.long))
            if len(scores) > 1:
                teacher = softmax((total - own.detach()) / (len(scores) - 1), dim=1)
                loss = loss + self.options.distill_weight * kl_div(
                    log_softmax(own, dim=1), teacher, reduction="batchmean"
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.no_grad()
    def recall(self, k: int = 20) -> float:
        """Validation Recall@k of the concatenation, full ranking, train items left out."""
        nodes = torch.arange(self.num_users + self.num_items)
        scores = torch.zeros(self.num_users, self.num_items)
        for net in self.nets:
            h = net(nodes, self.data.edge_index)
            scores += h[: self.num_users] @ h[self.num_users :].T
        top = scores.masked_fill_(self.known, -1e9).topk(k).indices
        some = self.truth.any(dim=1)
        hits = self.truth.gather(1, top).sum(dim=1)[some]
        return float((hits / self.truth.sum(dim=1)[some]).mean())


def main() -> None:
    options = trainer_parser(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    script = Script(options)
    for epoch in range(options.epochs):
        wait_for_word(options.paced)
        started = time.perf_counter()
        for rows in torch.randperm(script.users.numel()).split(options.batch_size):
            script.step(script.users[rows], script.items[rows])
        seconds = time.perf_counter() - started
        tell(epoch, seconds, script.recall(), sampler="PyG" if HAS_SAMPLER else "this package")


if __name__ == "__main__":
    main()
