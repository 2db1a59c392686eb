"""Evaluation on Ray Train workers gives the bits of evaluation in this process."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import Head, run

from gnnmr_dist.evaluate import main
from gnnmr_dist.ranking import USERS_PER_BLOCK


@pytest.mark.ray
@pytest.mark.parametrize("among", [(), ("--among", "cold")])
def test_two_workers_write_the_same_numbers_as_none(
    head: Head, undisturbed: Path, tmp_path: Path, among: tuple[str, ...]
) -> None:
    """200 users are two blocks: one for each worker; each embeds one modality."""
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    options = ["--run", str(output), "--split", "test", "--no-baselines", *among]
    name = "-".join(["evaluation-test", *among[1:]])

    def written() -> tuple[dict[str, dict[str, float]], pq.Table]:
        numbers = json.loads((output / f"{name}.json").read_text())["rows"]
        return numbers, pq.read_table(output / f"{name}-users.parquet")

    assert main(options) == 0
    alone = written()
    shutil.rmtree(output)
    shutil.copytree(undisturbed, output)
    ended = run([sys.executable, "-m", "gnnmr_dist.evaluate", *options, "--num-workers", "2"], head.address)
    assert ended.code == 0, ended.err
    together = written()
    assert len(set(alone[1]["user"].to_pylist())) > (0 if among else USERS_PER_BLOCK)
    assert together[0] == alone[0]
    assert together[1].equals(alone[1])
    assert not list(output.glob(".evaluation-*"))
