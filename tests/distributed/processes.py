"""Training in several gloo processes of this machine, without Ray: what the tests of this folder share."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gnnmr_dist.config import Settings, build
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.distributed.mesh import Mesh, meet_by_file, one_process, process_mesh
from gnnmr_dist.evaluation import ENSEMBLES, evaluate, make_scorer, modality_vectors, relevant_items
from gnnmr_dist.fitting import Record, Session, fit, open_session
from gnnmr_dist.members import members_of
from gnnmr_dist.sections import ClusterSettings

SECONDS = 240
SMALL = {
    "model": {"embedding_dim": 16},
    "loss": {"num_candidates": 24},
    "sampling": {"num_neighbors": (4, 4)},
    "training": {"epochs": 3, "global_batch_size": 200, "learning_rate": 0.01, "valid_every": 1},
}


@dataclass(frozen=True)
class Case:
    """One run: a data set's path and what differs from the small settings."""

    dataset: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def settings(self) -> Settings:
        return build(("small", SMALL), ("case", {k: dict(v) for k, v in self.changes.items()}))


@dataclass
class Outcome:
    """What a worker saw: its records, place [R, G, replica, group], how it ended, test metrics by row, some weights."""

    place: list[int]
    records: list[Record]
    finished: str
    test: dict[str, dict[str, float]]
    weights: dict[str, dict[str, list[float]]]

    def losses(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Losses of every step [steps, M, 2]."""
        rows = [r["losses"] for r in self.records if r["kind"] == "step"]
        return np.array([[list(loss.values()) for loss in row.values()] for row in rows])


class Recorder:
    """Hooks that keep the records and write nothing."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        self.records.append(record)

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        del session, metrics


def run(case: Case, mesh_of: Any) -> Outcome:
    """Train one case in this process; ``mesh_of(M, cluster settings)`` gives its place among the workers."""
    dataset, settings = open_dataset(case.dataset, verify="structure"), case.settings()
    mesh: Mesh = mesh_of(len(members_of(dataset, settings.model)), settings.cluster)
    session = open_session(dataset, settings, mesh, None)
    hooks = Recorder()
    fit(session, hooks)
    place = [mesh.replicas, mesh.groups, mesh.replica, mesh.group]
    test = {} if str(session.state.finished).startswith("diverged") else _test_metrics(session)
    return Outcome(place, hooks.records, str(session.state.finished), test, _weights(session))


def run_alone(case: Case) -> Outcome:
    """The same in one process, W = 0."""
    return run(case, lambda modalities, _: one_process(modalities))


def _test_metrics(session: Session) -> dict[str, dict[str, float]]:
    vectors = modality_vectors(
        [(m.member, m.encoder) for m in session.models], session.dataset, session.settings.model, session.mesh
    )
    relevant = relevant_items(session.dataset.interactions("test"), session.dataset.num_users)
    table: dict[str, dict[str, float]] = {}
    for row in (*session.names, *ENSEMBLES):
        scorer = make_scorer(row, session.names, vectors, session.dataset.graph, session.ensemble_present)
        result = evaluate(
            scorer, session.dataset.graph, relevant, session.settings.evaluation.ks, session.mesh
        )
        table[row] = dict(result.means)
    return table


def _weights(session: Session) -> dict[str, dict[str, list[float]]]:
    return {
        m.name: {k: p.detach().double().flatten()[:50].tolist() for k, p in m.encoder.named_parameters()}
        for m in session.models
    }


def _mesh(num_modalities: int, cluster: ClusterSettings) -> Mesh:
    mesh = process_mesh(num_modalities, groups=cluster.modality_groups, share_memory=cluster.share_memory)
    for size, memory in ((mesh.groups, mesh.modality_memory), (mesh.replicas, mesh.replica_memory)):
        used = memory is not None and memory.usable
        assert used == (cluster.share_memory and size > 1 and sys.platform == "linux")
    return mesh


def _process(rank: int, world: int, store: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    meet_by_file(store, rank, world, SECONDS)
    try:
        for number, case in enumerate(cases):
            outcome = run(case, _mesh)
            Path(f"{store}.{number}.{rank}").write_text(json.dumps(vars(outcome)), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def in_processes(work: Callable[[int, Path], None], folder: Path, world: int = 2) -> None:
    """Call ``work(rank, folder)`` in ``world`` processes; raises AssertionError when one fails."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, folder)) for rank in range(world)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    for worker in workers:
        if worker.is_alive():
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * world


def run_workers(world: int, cases: list[Case]) -> list[list[Outcome]]:
    """Every worker's outcome of every case, in ``world`` processes that take the cases one after the other."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory, "store"))
        workers = [context.Process(target=_process, args=(r, world, store, cases)) for r in range(world)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(SECONDS)
        for worker in workers:
            if worker.is_alive():
                worker.kill()
        codes = [worker.exitcode for worker in workers]
        if any(codes):
            raise AssertionError(f"workers ended with {codes}")
        return [
            [Outcome(**json.loads(Path(f"{store}.{n}.{r}").read_text("utf-8"))) for r in range(world)]
            for n in range(len(cases))
        ]
