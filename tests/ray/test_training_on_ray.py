"""Training with Ray Train workers: the numbers of one process, whatever is killed on the way."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import (
    Head,
    assert_same,
    has_checkpoint,
    kill,
    losses,
    run,
    started,
    steps,
    train_command,
    train_workers,
    validations,
    wait_for,
)

from gnnmr_dist.train import main

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_two_workers_give_the_bits_of_one_process(
    head: Head, dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    options = ["--num-workers", "2", "--trackers", "tensorboard", "--report-every-steps", "7"]
    ended = run(train_command(dataset, tmp_path / "run", *options), head.address)
    assert (ended.code, ended.err) == (0, "")
    assert_same(tmp_path / "run", undisturbed)
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    windows = 3 * -(-len(steps(undisturbed)) // 3 // 7)
    assert events.read_bytes().count(b"train/text/softmax") == windows
    assert events.read_bytes().count(b"valid/Recall_20") == 3  # TensorBoard takes no @
    assert "\x1b" not in ended.out
    assert [line.split()[1] for line in ended.out.splitlines() if line.startswith("epoch")] == [
        "1/3",
        "2/3",
        "3/3",
    ]


def test_four_workers_are_two_replicas_of_two_modalities(
    head: Head, dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    ended = run(train_command(dataset, tmp_path / "run", "--num-workers", "4"), head.address)
    assert (ended.code, ended.err) == (0, "")
    assert "4 Ray Train workers (2 x 2)" in ended.out
    assert steps(tmp_path / "run") == steps(undisturbed)
    # float32 sums in another order: of 312 losses the worst seen differs by 1.2e-5, all others by less than 1e-5
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(undisturbed), rtol=2e-5)


def test_a_method_in_closed_form_takes_the_same_path(head: Head, dataset: Path, tmp_path: Path) -> None:
    """Two workers fit each and rank half of the users: the bits of one process."""
    alone, together = (
        train_command(dataset, tmp_path / n, "--method", "item-knn", "--num-workers", n) for n in "02"
    )
    assert main(alone[3:]) == 0
    ended = run(together, head.address)
    assert (ended.code, ended.err) == (0, "")
    assert "epoch   6/6  neighbours -1  valid Recall@20 " in ended.out
    assert len(validations(tmp_path / "0")) == 6
    assert_same(tmp_path / "2", tmp_path / "0")


def test_a_worker_killed_mid_epoch_is_replaced_and_nothing_changes(
    head: Head, dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    with started(train_command(dataset, output, "--num-workers", "2"), head.address) as process:
        wait_for(has_checkpoint(output, "epoch-00001-step-0000005"), process)
        victims = train_workers(head.pid)
        os.kill(victims[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), out
    assert_same(output, undisturbed)


@pytest.fixture(scope="module")
def killed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one worker, killed in its second epoch; to be copied before it is touched."""
    output = tmp_path_factory.mktemp("killed") / "run"
    with started(train_command(dataset, output, "--num-workers", "1")) as process:  # with a Ray of its own
        wait_for(has_checkpoint(output, "epoch-00001-step-0000005"), process)
        kill(process)
    assert not (output / "model").exists()
    return output


@pytest.mark.parametrize("workers", ["0", "4"])
def test_a_killed_run_is_resumed_on_another_number_of_workers(
    head: Head, dataset: Path, undisturbed: Path, killed: Path, tmp_path: Path, workers: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(killed, output)
    ended = run(train_command(dataset, output, "--resume", "--num-workers", workers), head.address)
    assert ended.code == 0, ended.err
    assert ", going on at epoch 2, step " in ended.out
    if workers == "0":
        assert_same(output, undisturbed)
    assert steps(output) == steps(undisturbed)
    np.testing.assert_allclose(losses(output), losses(undisturbed), rtol=1e-5)


@pytest.mark.slow  # the same without Ray: tests/distributed/test_same_numbers.py, "m2-exploding"
def test_a_diverging_run_stops_in_one_line_and_is_not_tried_again(
    head: Head, dataset: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    options = ["--learning-rate", "1e30", "--score", "dot", "--num-workers", "4"]
    ended = run(train_command(dataset, output, *options), head.address)
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("failed: diverged: loss of ")
    assert " is not finite at epoch 0, step " in ended.err
    assert [p.name for p in output.glob("checkpoints/attempt-*")] in ([], ["attempt-001"])
    assert not (output / "model").exists()


def test_a_failing_worker_is_told_in_one_line(head: Head, dataset: Path, tmp_path: Path) -> None:
    output, copy = tmp_path / "run", tmp_path / "data"
    shutil.copytree(dataset, copy)
    options = ["--num-workers", "2", "--max-failures", "0"]
    with started(train_command(copy, output, *options), head.address) as process:
        wait_for(lambda: (output / "run.json").exists(), process)  # opened and checked by the command
        shutil.rmtree(copy)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out
    assert err.count("\n") == 1, err
    assert str(copy) in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--num-workers", "1", "--use-gpu", "always"], "1 CPU and 1 GPU"),
        (["--num-workers", "2", "--cpus-per-worker", "64"], "64 CPU"),
        (["--num-workers", "5"], "expected at most 4 workers of 1 CPU each"),
    ],
)
def test_what_can_never_be_placed_is_refused_before_any_worker_starts(
    head: Head, dataset: Path, tmp_path: Path, options: list[str], told: str
) -> None:
    ended = run(train_command(dataset, tmp_path / "run", *options), head.address)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert told in ended.err
    assert not (tmp_path / "run").exists()


def test_no_cluster_at_the_address_is_one_line(dataset: Path, tmp_path: Path) -> None:
    ended = run(train_command(dataset, tmp_path / "run", "--num-workers", "1"), "127.0.0.1:9")
    assert ended.code == 2
    assert ended.err.count("\n") == 1, ended.err
    assert "RAY_ADDRESS" in ended.err
    assert not (tmp_path / "run").exists()
