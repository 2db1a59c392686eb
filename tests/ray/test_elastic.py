"""Nodes lost and given back while a run goes on: fewer workers, then all of them again, and the same numbers."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import (
    assert_same,
    has_checkpoint,
    started,
    title,
    train_command,
    wait_for,
)

from cluster import local
from gnnmr_dist.data.synthetic import synthetic_dataset

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]
LONG = ["--epochs", "120", "--patience", "1000", "--keep-checkpoints", "3"]
SECONDS = 600  # for a change of the number of workers, on a busy machine


@pytest.fixture
def directory() -> Iterator[Path]:
    """Two nodes of two CPUs."""
    holder = Path(tempfile.mkdtemp(prefix="ge-"))  # short: Unix sockets' paths are
    local.up(holder / "c", nodes=2, cpus=2, dashboard=False)
    try:
        yield holder / "c"
    finally:
        local.down(holder / "c")
        shutil.rmtree(holder)


def workers(directory: Path) -> int:
    nodes = local.read_state(directory).nodes
    return sum(title(p.pid).startswith("ray::RayTrainWorker") for n in nodes for p in local.processes(n))


def test_a_run_shrinks_with_its_cluster_and_grows_again(directory: Path, tmp_path: Path) -> None:
    dataset, output, whole = tmp_path / "m4", tmp_path / "run", tmp_path / "whole"
    synthetic_dataset(str(dataset), num_users=200, num_items=120, num_modalities=4, interactions_per_user=10)
    elastic = ["--num-workers", "4", "--min-workers", "1", "--resize-seconds", "5"]
    variables = local.client_variables(directory, local.read_state(directory))
    with started(train_command(dataset, output, *LONG, *elastic), variables=variables) as process:
        wait_for(has_checkpoint(output, "epoch-00001-step-0000005"), process, SECONDS)
        assert workers(directory) == 4
        for lost in local.processes(local.read_state(directory).nodes[1]):
            os.kill(lost.pid, signal.SIGKILL)
        wait_for(lambda: workers(directory) == 2, process, SECONDS)
        before = newest(output)
        wait_for(lambda: newest(output) > before, process, SECONDS)
        assert local.mend(directory) == ["node-1"]
        wait_for(lambda: workers(directory) == 4, process, SECONDS)
        before = newest(output)
        wait_for(lambda: newest(output) > before, process, SECONDS)
        assert workers(directory) == 4
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, ""), out
    assert "4 networks on 1 to 4 Ray Train workers" in out
    with started(train_command(dataset, whole, *LONG)) as process:
        assert process.communicate(timeout=SECONDS)[1] == ""
    assert_same(output, whole)  # with a worker for each modality or fewer, these are the same bits


def newest(output: Path) -> str:
    return max((p.parent.name for p in output.glob("checkpoints/*/epoch-*/manifest.json")), default="")
