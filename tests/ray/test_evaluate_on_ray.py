"""Evaluation on Ray Train workers gives the bits of evaluation in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.evaluate import main
from gnnmr_dist.train import train


@pytest.mark.ray
def test_two_workers_write_the_same_numbers_as_none(tmp_path: Path) -> None:
    synthetic_dataset(
        tmp_path / "data", num_users=700, num_items=70, num_modalities=3, interactions_per_user=10
    )
    training = {"epochs": 1, "valid_every": 1}
    train(open_dataset(tmp_path / "data"), str(tmp_path / "run"), build(("test", {"training": training})))
    found = []
    for workers in ("0", "2"):
        options = ["--split", "test", "--num-workers", workers, "--no-baselines"]
        assert main(["--run", str(tmp_path / "run"), *options]) == 0
        numbers = json.loads((tmp_path / "run" / "evaluation-test.json").read_text())["rows"]
        found.append((numbers, pq.read_table(tmp_path / "run" / "evaluation-test-users.parquet")))
    assert found[0][0] == found[1][0]
    assert found[0][1].equals(found[1][1])
    assert not list((tmp_path / "run").glob(".evaluation-*"))
