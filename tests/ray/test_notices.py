"""SIGTERM and a drained node: the state is saved at the next step, and nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from commands import (
    Head,
    assert_same,
    has_checkpoint,
    run,
    started,
    steps,
    train_command,
    train_workers,
    wait_for,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SELDOM = ["--checkpoint-every-steps", "1000", "--epochs", "30", "--patience", "100"]


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of 30 epochs that nobody disturbs."""
    output = tmp_path_factory.mktemp("whole") / "run"
    ended = run(train_command(dataset, output, *SELDOM))
    assert ended.code == 0, ended.err
    return output


@pytest.mark.parametrize("workers", [0, 2])
def test_a_command_that_gets_sigterm_saves_and_can_be_resumed(
    head: Head, dataset: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    output = tmp_path / "a run"
    command = train_command(dataset, output, *SELDOM, "--num-workers", str(workers))
    address = head.address if workers else None
    with started(command, address) as process:
        wait_for(has_checkpoint(output, "epoch-00002"), process)
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 143, out + err
    assert err.count("\n") == 1
    assert err.startswith("stopped: asked to end at epoch ")
    resume = f"python -m gnnmr_dist.train --dataset {dataset} --output '{output}' --resume goes on\n"
    assert err.endswith(f"; state saved; {resume}")
    saved = max(place.parent.name for place in output.glob("checkpoints/*/epoch-*/manifest.json"))
    assert saved.split("-")[1:2] + [saved.split("-")[3]] == [f"{n:0{w}}" for n, w in zip(after(output), (5, 7), strict=True)]
    ended = run([*train_command(dataset, output, *SELDOM), "--resume", "--num-workers", "0"])
    assert ended.code == 0, ended.err
    assert_same(output, whole)


def after(output: Path) -> tuple[int, int]:
    """The place behind the last step that metrics.jsonl has."""
    epoch, step = steps(output)[-1]
    return epoch, step + 1


def test_a_worker_that_gets_sigterm_saves_and_is_replaced(
    head: Head, dataset: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = train_command(dataset, output, *SELDOM, "--num-workers", "2", "--max-failures", "0")
    with started(command, head.address) as process:
        wait_for(has_checkpoint(output, "epoch-00002"), process)
        told = time.time()
        os.kill(train_workers(head.pid)[-1], signal.SIGTERM)
        out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), out
    del told
    assert_same(output, whole)
