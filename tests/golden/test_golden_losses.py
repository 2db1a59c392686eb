"""Per-step losses of a seeded run on planted data, as they were when last looked at.

They change when anything that training computes changes: the data generator, sampling, initialisation, a layer, a loss,
the optimizer. When such a change is meant, write them anew and say so in the commit message:

    python tests/golden/test_golden_losses.py
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.fitting import Record, Session, fit, open_session
from gnnmr_dist.presets import PRESETS, preset

FILE = Path(__file__).with_name("losses.json")
COMMAND = "python tests/golden/test_golden_losses.py"
TINY: dict[str, dict[str, Any]] = {
    "model": {"embedding_dim": 16},
    "loss": {"num_candidates": 16},
    "sampling": {"num_neighbors": [4, 3]},
    "training": {"epochs": 2, "global_batch_size": 64, "learning_rate": 0.01, "valid_every": 1, "seed": 7},
    "evaluation": {"ks": [20]},
}


class _Losses:
    """Hooks that keep the losses of every step."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, Mapping[str, float]]] = []

    def record(self, record: Record) -> None:
        if record["kind"] == "step":
            self.steps.append(record["losses"])

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        pass


def losses_of(name: str, folder: Path) -> list[Mapping[str, Mapping[str, float]]]:
    """Losses of every step of a tiny run of one preset: text (dense), image (dense), category; some rows missing."""
    torch.set_num_threads(1)
    synthetic_dataset(
        folder, num_users=40, num_items=64, interactions_per_user=10, num_modalities=3, feature_dim=8, seed=7
    )
    dataset = open_dataset(folder)
    session = open_session(dataset, build((name, preset(name)), ("tiny", TINY)), one_process(3), None)
    hooks = _Losses()
    fit(session, hooks)
    return hooks.steps


@pytest.mark.parametrize("name", PRESETS)
def test_losses_are_the_golden_ones(name: str, tmp_path: Path) -> None:
    golden = json.loads(FILE.read_text(encoding="utf-8"))["losses"][name]
    found = losses_of(name, tmp_path / "data")
    assert len(found) == len(golden)
    for number, (got, want) in enumerate(zip(found, golden, strict=True)):
        assert list(got) == list(want)
        for modality in want:
            assert got[modality] == pytest.approx(want[modality], rel=1e-4), f"step {number}, {modality}"


def write() -> None:
    """Write losses.json anew."""
    with tempfile.TemporaryDirectory() as folder:
        losses = {name: losses_of(name, Path(folder, name)) for name in PRESETS}
    content = {"command": COMMAND, "torch": torch.__version__, "losses": losses}
    FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
