"""Cost per edge as graphs grow, and memory against its formula.

Data sets of ``large_graph.py`` with two dense modalities (64 and 32 numbers), 40 train edges per user. Cost is
processor time of a training step (sampling, features, both models), one thread. Two tables:

- equal overlap: the batch is 1 % of the train edges, so a step touches the same share of the graph at every size; cost
  per train edge = step / batch. The headline is that cost at the smallest size / at the largest.
- one batch of 1,024 for all: a step on a larger graph touches more different nodes (those of a small one are sampled
  again and again within a step), so it costs more per train edge; the table has the nodes and the cost per node.

Memory: what opening a run adds to the process, against 12 d + 4 bytes per row of an ID table (weights, two moments, a
step number), for every user and item of every modality; graph and features are mapped and shared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

from large_graph import large_dataset
from measure import Report, parser, ratio, side_by_side, use_threads

from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.fitting import Session, open_session, upcoming_steps
from gnnmr_dist.memory import memory_now
from gnnmr_dist.training import train_step

CANDIDATES = 64


@dataclass
class Trial:
    """One size and batch: its session, and what its last step touched."""

    session: Session
    batch: int
    added_mib: float
    nodes: int = 0
    edges: int = 0

    def run(self, steps: range) -> float:
        """Processor seconds per step."""
        session, started = self.session, time.process_time()
        for data, rows in upcoming_steps(session, 0, steps):
            train_step(session.models, data, rows, session.present, session.mesh, session.settings)
            self.nodes = data.nodes.users.numel() + data.nodes.items.numel()
            self.edges = sum(block.num_edges for block in data.nodes.blocks)
        return (time.process_time() - started) / len(steps)

    def table_rows(self) -> int:
        """Rows of all ID tables."""
        dataset = self.session.dataset
        return (dataset.num_users + dataset.num_items) * len(dataset.modalities)

    def formula_mib(self) -> float:
        """What the ID tables and their optimizer take."""
        return self.table_rows() * (12 * self.session.settings.model.embedding_dim + 4) / 2**20


def open_trial(path: Path, batch: int) -> Trial:
    dataset = open_dataset(path, verify="structure")
    settings = build(
        (
            "benchmark",
            {
                "training": {"global_batch_size": batch},
                "sampling": {"num_neighbors": [10, 10]},
                "loss": {"num_candidates": CANDIDATES},
                "cluster": {"prefetch": "exchange"},
            },
        )
    )
    before = memory_now()["private_mib"]
    session = open_session(dataset, settings, one_process(len(dataset.modalities)), None)
    return Trial(session, batch, memory_now()["private_mib"] - before)


def measure(trials: dict[str, Trial], rounds: int, most: int) -> dict[str, list[float]]:
    """Processor seconds per step of every trial, in turns; large batches get one step a round."""
    place = {name: count() for name in trials}

    def step(name: str) -> float:
        trial = trials[name]
        steps = max(1, min(most, 200_000 // trial.batch))
        first = next(place[name]) * steps % max(1, trial.session.num_steps - steps)
        return trial.run(range(first, first + steps))

    return side_by_side({name: (lambda n=name: step(n)) for name in trials}, rounds=rounds)


def table(report: Report, trials: dict[str, Trial], seconds: dict[str, list[float]]) -> None:
    rows = []
    for name, trial in trials.items():
        step = median(seconds[name])
        rows.append(
            (
                name,
                f"{trial.batch:,}",
                f"{step * 1e3:,.1f}",
                f"{trial.nodes:,}",
                f"{trial.edges:,}",
                f"{step / trial.batch * 1e6:.1f}",
                f"{step / trial.nodes * 1e6:.2f}",
                f"{step / trial.edges * 1e9:.0f}",
            )
        )
    columns = ("train edges", "batch", "ms a step", "nodes", "message edges")
    report.table((*columns, "us per train edge", "us per node", "ns per message edge"), rows)


def sizes(options: argparse.Namespace) -> list[int]:
    return [int(e) for e in options.edges or ([1e5, 1e6] if options.quick else [1e5, 1e6, 1e7, 5e7])]


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--edges", type=float, nargs="+", help="sizes [1e5 1e6 1e7 5e7; with --quick 1e5 1e6]")
    made.add_argument("--data", type=Path, help="keep the data sets here [a temporary directory]")
    options = made.parse_args()
    use_threads(options.threads)
    report = Report("scaling", "Cost per edge from small to large graphs", options)
    with tempfile.TemporaryDirectory() as temporary:
        home = options.data or Path(temporary)
        paths = {f"{edges:.0e}": home / str(edges) for edges in sizes(options)}
        for edges, path in zip(sizes(options), paths.values(), strict=True):
            if not path.exists():
                large_dataset(path, edges=edges)
        equal = {n: open_trial(p, e // 100) for (n, p), e in zip(paths.items(), sizes(options), strict=True)}
        seconds = measure(equal, options.rounds, 8)
        report.say("## Equal overlap: the batch is 1 % of the train edges")
        table(report, equal, seconds)
        per_edge = [[s / trial.batch for s in seconds[name]] for name, trial in equal.items()]
        headline = ratio(per_edge[0], per_edge[-1])
        report.say("## Memory that opening a run adds")
        columns = ("train edges", "rows of ID tables", "MiB added", "MiB by the formula")
        rows = [
            (name, f"{trial.table_rows():,}", f"{trial.added_mib:,.0f}", f"{trial.formula_mib():,.0f}")
            for name, trial in equal.items()
        ]
        report.table(columns, rows)
        del equal
        fixed = {name: open_trial(path, 1024) for name, path in paths.items()}
        report.say("## The same batch on every graph")
        table(report, fixed, measure(fixed, options.rounds, 8))
    report.close(headline)


if __name__ == "__main__":
    main()
