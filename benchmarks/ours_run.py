"""This package's training, one JSON line per epoch: the side that benchmarks measure against others.

The data path, the step and the loop are the package's own (``open_session`` and ``fit``); only the report is this
script's. Settings not given here are the defaults. With ``--workers`` modalities are shared out over processes, as in a
run on Ray, which divide the threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from measure import use_threads
from paced import open_modalities, tell, trainer_parser, wait_for_word

from gnnmr_dist.config import Settings, build
from gnnmr_dist.distributed.mesh import Mesh, meet_by_file, one_process, process_mesh
from gnnmr_dist.fitting import Session, fit, open_session

PATIENCE = 3600.0
"""Seconds that workers wait for each other, and so for the word to go on."""


def settings_of(options: argparse.Namespace) -> Settings:
    """The trainer's options as settings: validated after every epoch, never stopped early."""
    values: dict[str, dict[str, Any]] = {
        "model": {"embedding_dim": options.dim, "temperature": options.temperature},
        "loss": {"num_candidates": options.candidates, "distill_weight": options.distill_weight},
        "sampling": {"num_neighbors": tuple(options.fan_out)},
        "training": {
            "seed": options.seed,
            "epochs": options.epochs,
            "global_batch_size": options.batch_size,
            "learning_rate": options.learning_rate,
            "valid_every": 1,
            "patience": options.epochs,
        },
        "evaluation": {"ks": (20,)},
    }
    return build(("options", values))


def make_session(options: argparse.Namespace, mesh: Mesh | None = None) -> Session:
    """A session of these options in this process: all of it, or its part of a mesh."""
    dataset = open_modalities(options.dataset, options.modalities)
    mesh = mesh or one_process(len(dataset.modalities), torch.device("cpu"))
    return open_session(dataset, settings_of(options), mesh, None)


class Telling:
    """Hooks of :func:`fit`: the first worker tells every epoch, and all wait until it has the word to go on."""

    def __init__(self, paced: bool) -> None:
        self.paced = paced

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "epoch":
            tell(record["epoch"], record["seconds"], record["valid"]["Recall@20"])

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        del metrics
        self.wait(session)

    def wait(self, session: Session) -> None:
        if session.mesh.rank == 0:
            wait_for_word(self.paced)
        session.mesh.sum_world(torch.zeros(1))


def work(rank: int, store: str, options: argparse.Namespace) -> None:
    """One worker of several, or all of the training."""
    use_threads(max(1, options.threads // options.workers))
    mesh = None
    if options.workers > 1:
        modalities = open_modalities(options.dataset, options.modalities).modalities
        meet_by_file(store, rank, options.workers, PATIENCE)
        mesh = process_mesh(len(modalities), groups=options.workers, timeout_seconds=PATIENCE)
    session, telling = make_session(options, mesh), Telling(options.paced)
    telling.wait(session)
    fit(session, telling)


def main() -> None:
    made = trainer_parser(__doc__ or "")
    made.add_argument("--workers", type=int, default=1, help="processes, at most one for each modality")
    options = made.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        store = f"{directory}/store"
        for rank in range(1, options.workers):
            context.Process(target=work, args=(rank, store, options), daemon=True).start()
        work(0, store, options)


if __name__ == "__main__":
    main()
