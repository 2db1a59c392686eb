"""Unit tests run on one thread: tiny sizes, and sums in one order. One tiny run for what comes after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

SMALL = {
    "model": {"embedding_dim": 16},
    "loss": {"num_candidates": 32},
    "sampling": {"num_neighbors": [5, 5]},
    "training": {"epochs": 2, "global_batch_size": 128, "valid_every": 1},
    "evaluation": {"ks": [5, 20], "mask_missing_in_ensemble": True},
}


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: text, image, audio, category and m5 (bags) over 60 users and 70 items, some of them cold."""
    from gnnmr_dist.config import build
    from gnnmr_dist.data.dataset import open_dataset
    from gnnmr_dist.data.synthetic import synthetic_dataset
    from gnnmr_dist.train import train

    home = tmp_path_factory.mktemp("planted")
    sizes = {"num_users": 60, "num_items": 70, "num_modalities": 5, "interactions_per_user": 10}
    synthetic_dataset(home / "data", cold_users=3, cold_items=4, **sizes)
    train(open_dataset(home / "data"), str(home / "run"), build(("test", SMALL)))
    return home / "run"


@pytest.fixture(scope="session")
def loaded(planted: Path) -> Any:
    """The same run, opened: a LoadedRun."""
    from gnnmr_dist.loaded import open_run

    return open_run(planted)
