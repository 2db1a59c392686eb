"""Starting the command line as users do, and looking at the processes it makes (Linux: /proc)."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gnnmr_dist.reporting import read_records

SECONDS = 150
# What a driver needs to join a cluster of `ray start` on loopback: its token, and Ray's leave to use 127.0.0.1.
JOIN = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # a machine without ~/.ray has none
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
SMALL = {
    "embedding-dim": [16],
    "num-candidates": [24],
    "num-neighbors": [4, 4],
    "epochs": [3],
    "global-batch-size": [60],
    "learning-rate": [0.01],
    "valid-every": [1],
    "checkpoint-every-steps": [5],
    "timeout-seconds": [60],
}


@dataclass(frozen=True)
class Ended:
    """A finished command."""

    code: int
    out: str
    err: str


def environment(address: str | None, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without Ray's, those that let a driver join ``address``, and ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    fixed = {
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    joining = {} if address is None else {"RAY_ADDRESS": address, **JOIN}
    return kept | fixed | joining | dict(variables or {})


def train_command(dataset: Path, output: Path, *options: str) -> list[str]:
    where = ["--dataset", str(dataset), "--output", str(output)]
    small = [word for name, values in SMALL.items() for word in (f"--{name}", *map(str, values))]
    return [sys.executable, "-m", "gnnmr_dist.train", *where, *small, *options]


def run(
    command: list[str],
    address: str | None = None,
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Ended:
    """Run to the end; a command that hangs is killed with all it started, and fails the test."""
    with started(command, address, variables, cwd) as process:
        out, err = process.communicate(timeout=SECONDS)
    return Ended(process.returncode, out, err)


@contextmanager
def started(
    command: list[str],
    address: str | None = None,
    variables: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """The running command; on leaving, it and every process below it are gone."""
    process = subprocess.Popen(
        command,
        env=environment(address, variables),
        cwd=cwd or tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a command and to every process below it."""
    for pid in [process.pid, *below(process.pid)]:
        signal_if_there(pid, signal.SIGKILL)
    process.communicate()


def signal_if_there(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def below(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, todo = [], [pid]
    while todo:
        last = todo.pop()
        children = [child for child, parent in parents.items() if parent == last]
        found += children
        todo += children
    return found


def train_workers(root: int) -> list[int]:
    """The Ray Train workers below a process."""
    return [pid for pid in below(root) if title(pid).startswith("ray::RayTrainWorker")]


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def wait_for(
    what: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120, pause: float = 0.02
) -> None:
    """Look every ``pause`` seconds until ``what`` holds while the process runs."""
    end = time.monotonic() + seconds
    while not what():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(pause)


def has_checkpoint(output: Path, at_least: str) -> Callable[[], bool]:
    """Whether a checkpoint of that name or a later one is complete."""
    return lambda: any(
        place.parent.name >= at_least for place in output.glob("checkpoints/*/epoch-*/manifest.json")
    )


def steps(output: Path) -> list[tuple[int, int]]:
    return [(r["epoch"], r["step"]) for r in read_records(output / "metrics.jsonl") if r["kind"] == "step"]


def losses(output: Path) -> list[list[float]]:
    """Losses of every step, in the order of the file."""
    records = [r for r in read_records(output / "metrics.jsonl") if r["kind"] == "step"]
    return [[value for loss in r["losses"].values() for value in loss.values()] for r in records]


def validations(output: Path) -> list[dict[str, float]]:
    return [r["valid"] for r in read_records(output / "metrics.jsonl") if r["kind"] == "epoch"]


def model_bytes(output: Path) -> dict[str, bytes]:
    """The finished model, file by file."""
    return {p.name: p.read_bytes() for p in sorted(output.glob("model/*.safetensors"))}


def assert_same(output: Path, undisturbed: Path) -> None:
    """Every step once, in order; the same bits in losses, validations and the finished model."""
    assert steps(output) == steps(undisturbed)
    assert losses(output) == losses(undisturbed)
    assert validations(output) == validations(undisturbed)
    assert model_bytes(output) == model_bytes(undisturbed)


@dataclass(frozen=True)
class Head:
    """A cluster of one node that a test started."""

    address: str
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(num_cpus: int, *options: str, ray: str | None = None) -> Iterator[Head]:
    """``ray start --head`` on loopback; only what it started is ended."""
    port, directory = free_port(), tempfile.mkdtemp(prefix="gr-")  # short: Unix sockets' paths are
    command = [ray or str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}"]
    command += [
        f"--temp-dir={directory}",
        "--disable-usage-stats",
        *(options or ("--include-dashboard=false",)),
    ]
    with open(f"{directory}/log", "wb") as log:
        head = subprocess.Popen(
            command,
            env=environment(None) | JOIN,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        wait_for(lambda: b"Ray runtime started" in Path(f"{directory}/log").read_bytes(), head)
        yield Head(f"127.0.0.1:{port}", head.pid)
    finally:
        kill(head)
        shutil.rmtree(directory, ignore_errors=True)
