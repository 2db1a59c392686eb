"""SIGTERM and a drained node: the state is saved at the next step, and nothing is lost or done twice."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from commands import (
    Head,
    assert_same,
    has_checkpoint,
    run,
    started,
    steps,
    title,
    train_command,
    train_workers,
    wait_for,
)

from cluster import local

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
    epoch, step = steps(output)[-1]
    assert saved == f"epoch-{epoch:05}-step-{step + 1:07}"  # nothing of what was done is done again
    ended = run([*train_command(dataset, output, *SELDOM), "--resume", "--num-workers", "0"])
    assert ended.code == 0, ended.err
    assert_same(output, whole)


def test_a_worker_that_gets_sigterm_saves_and_is_replaced(
    head: Head, dataset: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = train_command(dataset, output, *SELDOM, "--num-workers", "2", "--max-failures", "0")
    with started(command, head.address) as process:
        wait_for(has_checkpoint(output, "epoch-00002"), process)
        os.kill(train_workers(head.pid)[-1], signal.SIGTERM)
        out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), out
    assert_same(output, whole)


def test_a_worker_that_hangs_is_given_up_after_the_timeout(
    head: Head, dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    command = train_command(dataset, output, "--num-workers", "2", "--timeout-seconds", "10")
    with started(command, head.address) as process:
        wait_for(has_checkpoint(output, "epoch-00001-step-0000005"), process)
        os.kill(train_workers(head.pid)[-1], signal.SIGSTOP)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out
    assert_same(output, undisturbed)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_directory_is_gone_ends_in_one_line_and_does_not_start_over(
    head: Head, dataset: Path, tmp_path: Path, workers: int
) -> None:
    output = tmp_path / "run"
    command = train_command(dataset, output, *SELDOM, "--num-workers", str(workers), "--max-failures", "1")
    with started(command, head.address if workers else None) as process:
        wait_for(has_checkpoint(output, "epoch-00002"), process)
        output.rename(tmp_path / "elsewhere")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert err.count("\n") == 1, err
    assert "expected a file of this run, got none any more" in err
    assert not list(tmp_path.glob("run/checkpoints/*/epoch-*/manifest.json"))


@pytest.mark.slow
def test_a_drained_node_is_left_in_time(dataset: Path, whole: Path, tmp_path: Path) -> None:
    """What a cluster does before it takes a node away (a spot instance, a scale-down)."""
    output, holder = tmp_path / "run", Path(tempfile.mkdtemp(prefix="gd-"))  # short: Unix sockets' paths are
    local.up(holder / "c", nodes=3, cpus=1, dashboard=False)
    try:
        variables = local.client_variables(holder / "c", local.read_state(holder / "c"))
        command = train_command(dataset, output, *SELDOM, "--num-workers", "2", "--max-failures", "0")
        with started(command, variables=variables) as process:
            wait_for(has_checkpoint(output, "epoch-00002"), process)
            lost = next(n for n in local.read_state(holder / "c").nodes[1:] if hosts_worker(n))
            os.kill(lost.pid, signal.SIGTERM)  # `ray start` drains its node first
            out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, ""), out
    finally:
        local.down(holder / "c")
        shutil.rmtree(holder)
    assert_same(output, whole)


def hosts_worker(node: local.Node) -> bool:
    return any(title(p.pid).startswith("ray::RayTrainWorker") for p in local.processes(node))
