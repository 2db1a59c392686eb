"""What mutual learning does on planted data, over seeds: test Recall@20 of every row with lambda 0 and 0.5.

``python benchmarks/planted.py --dataset DIR`` on a set made with the options of the Makefile's demo (PLANTED). Writes
one Markdown file. Each modality's features know one block of the truth; those of the second are weak.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from main_job import HERE, PLANTED_TRAINING, commit, oracle

from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.evaluation import ENSEMBLES, evaluate, make_scorer, modality_vectors, relevant_items
from gnnmr_dist.fitting import Session, fit, open_session

WEIGHTS = (0.0, 0.5)


class Quiet:
    """Hooks that keep nothing."""

    def record(self, record: Mapping[str, Any]) -> None:
        pass

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        pass


def recalls(dataset: Dataset, seed: int, weight: float, epochs: int) -> dict[str, float]:
    batch = int(PLANTED_TRAINING[1])
    training = {"seed": seed, "epochs": epochs, "global_batch_size": batch}
    settings = build(("benchmark", {"training": training, "loss": {"distill_weight": weight}}))
    mesh = one_process(len(dataset.modalities))
    session = open_session(dataset, settings, mesh, None)
    fit(session, Quiet())
    encoders = [(model.member, model.encoder) for model in session.models]
    vectors = modality_vectors(encoders, dataset, settings.model, mesh)
    test = relevant_items(dataset.interactions("test"), dataset.num_users)
    found = {}
    for row in (*session.names, *ENSEMBLES):
        scorer = make_scorer(row, session.names, vectors, dataset.graph, session.ensemble_present)
        found[row] = evaluate(scorer, dataset.graph, test, (20,), mesh).means["Recall@20"]
    print(seed, weight, json.dumps({row: round(value, 4) for row, value in found.items()}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "planted.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(arguments.dataset)
    runs = {
        (seed, weight): recalls(dataset, seed, weight, arguments.epochs)
        for seed in arguments.seeds
        for weight in WEIGHTS
    }
    lines = [
        "# Mutual learning on planted data",
        "",
        f"`python benchmarks/planted.py` on {platform.machine()}, {os.cpu_count()} cores, commit {commit()}, "
        f"{date.today()}. Test Recall@20, {arguments.epochs} epochs, seeds {arguments.seeds}; gain = lambda 0.5 minus "
        "lambda 0, same seed.",
        *oracle(arguments.dataset),
        "",
        "| row | lambda 0 | lambda 0.5 | gain | gain per seed |",
        "|---|---:|---:|---:|---|",
    ]
    for row in runs[arguments.seeds[0], 0.0]:
        off, on = (np.array([runs[seed, weight][row] for seed in arguments.seeds]) for weight in WEIGHTS)
        each = ", ".join(f"{gain:+.4f}" for gain in on - off)
        lines.append(f"| {row} | {off.mean():.4f} | {on.mean():.4f} | {(on - off).mean():+.4f} | {each} |")
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
