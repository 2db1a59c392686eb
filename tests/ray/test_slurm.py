"""The Slurm script with stand-ins for Slurm's commands: two real raylets of this machine, one run over both."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from commands import Ended, assert_same, run, train_command

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("bash") is None, reason="a script for bash on Linux"
    ),
]

# srun: leave its options out, run the rest here. ray: `ray start`, on loopback.
STAND_INS = {
    "scontrol": 'printf "node-a\\nnode-b\\n"',
    "hostname": "echo 127.0.0.1",
    "srun": 'while [[ $1 == --* ]]; do shift; done; echo "$@" >> "$LOG"; exec "$@"',
    "ray": 'shift; exec python -m cluster.loopback_node "$@"',
    "python": f'exec {sys.executable} "$@"',
}


@pytest.fixture
def home() -> Path:
    """The job's shared folder and scratch; short, for Ray's sockets lie below it."""
    return Path(tempfile.mkdtemp(prefix="gs-"))


def submit(home: Path, *options: str) -> Ended:
    """The script as Slurm would start it on the first node."""
    tools = home / "bin"
    tools.mkdir()
    for name, text in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    variables = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LOG": str(home / "srun.log"),
        "GNNMR_SHARED": str(home),
        "TMPDIR": str(home),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_CPUS_PER_TASK": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    return run(["bash", str(SCRIPT), *options], variables=variables, cwd=ROOT)


@pytest.mark.slow
def test_one_run_over_two_nodes_and_nothing_left(
    dataset: Path, undisturbed: Path, tmp_path: Path, home: Path
) -> None:
    output = tmp_path / "run"
    ended = submit(home, *train_command(dataset, output, "--num-workers", "2")[3:])
    assert ended.code == 0, ended.err
    assert "2 Ray Train workers (1 x 2)" in ended.out
    assert_same(output, undisturbed)
    calls = (home / "srun.log").read_text()
    assert (
        calls.count("ray start --head")
        == calls.count("ray start --block --disable-usage-stats --num-cpus=1 ")
        == 1
    )
    assert {p.name for p in home.iterdir()} == {"bin", "srun.log"}  # token, logs and Ray's files are gone
    shutil.rmtree(home)


def test_the_commands_exit_code_is_the_jobs(tmp_path: Path, home: Path) -> None:
    ended = submit(home)
    assert ended.code == 2
    assert ended.err == "error: expected the options of gnnmr_dist.train, got none\n"
    assert not (home / "srun.log").exists()
    shutil.rmtree(home)
