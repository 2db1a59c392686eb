"""What the campaign of kills holds a run to: the same training passes whatever its pace, another one does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults.checks import check_run, train_options

from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.errors import RunError
from gnnmr_dist.train import main


def test_the_same_training_passes_and_a_changed_one_does_not(tmp_path: Path) -> None:
    data = tmp_path / "data"
    synthetic_dataset(str(data), num_users=100, num_items=80, num_modalities=2, interactions_per_user=8)
    one, other = tmp_path / "one", tmp_path / "other"
    for output in (one, other):
        assert main([*train_options(data, output, 2), "--num-workers", "0"]) == 0
    check_run(one, other)
    lines = (one / "metrics.jsonl").read_text().splitlines(keepends=True)
    (one / "metrics.jsonl").write_text("".join([lines[0].replace('"softmax": ', '"softmax": 1'), *lines[1:]]))
    with pytest.raises(RunError, match=r"expected .*got"):
        check_run(one, other)
    shutil.rmtree(one)
    shutil.copytree(other, one)
    (one / "model" / "draft.tmp").touch()
    with pytest.raises(RunError, match="left over"):
        check_run(one, other)
