"""This package's training in one process, one JSON line per epoch: the side that benchmarks measure against others.

The data path, the step and the loop are the package's own (``open_session`` and ``fit``); only the report is this
script's. Settings not given here are the defaults.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from measure import use_threads
from paced import open_modalities, tell, trainer_parser, wait_for_word

from gnnmr_dist.config import Settings, build
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.fitting import Session, fit, open_session


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


def make_session(options: argparse.Namespace) -> Session:
    """A session of these options in this process."""
    dataset = open_modalities(options.dataset, options.modalities)
    mesh = one_process(len(dataset.modalities), torch.device("cpu"))
    return open_session(dataset, settings_of(options), mesh, None)


class Telling:
    """Hooks of :func:`fit` that tell every epoch and wait for the word to go on."""

    def __init__(self, paced: bool) -> None:
        self.paced = paced

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "epoch":
            tell(record["epoch"], record["seconds"], record["valid"]["Recall@20"])

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        wait_for_word(self.paced)


def main() -> None:
    options = trainer_parser(__doc__ or "").parse_args()
    use_threads(options.threads)
    session = make_session(options)
    wait_for_word(options.paced)
    fit(session, Telling(options.paced))


if __name__ == "__main__":
    main()
