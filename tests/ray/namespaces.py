"""Nodes with network addresses of their own on one machine: network namespaces on a bridge that leads nowhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import JOIN, environment, kill, wait_for

PREFIX = "10.213.77"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def requires_namespaces() -> None:
    """Skip where this process may not make network namespaces."""
    if sys.platform != "linux" or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux, iproute2 and root")
    name = f"gn{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")


@contextmanager
def network(nodes: int) -> Iterator[list[str]]:
    """Names of ``nodes`` namespaces; number n has the address ``PREFIX.n+1`` on its only interface, eth0."""
    switch, names = f"gn{os.getpid()}s", [f"gn{os.getpid()}n{n}" for n in range(nodes)]
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "br0", "type", "bridge")
        ip("-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip(
                "-n",
                name,
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                f"p{number}",
                "netns",
                switch,
            )
            ip("-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            ip("-n", name, "address", "add", f"{PREFIX}.{number + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def inside(name: str, command: list[str]) -> list[str]:
    """The command in that namespace."""
    return ["ip", "netns", "exec", name, *command]


@contextmanager
def node(name: str, number: int, variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """`ray start` in the namespace: number 0 is the head, others join it; on leaving its processes are gone."""
    directory = Path(tempfile.mkdtemp(prefix="gn-"))  # short: Unix sockets' paths are
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    command += ["--num-cpus=1", f"--node-ip-address={PREFIX}.{number + 1}", f"--temp-dir={directory}/r"]
    command += (
        ["--head", "--port=6379", "--include-dashboard=false"]
        if number == 0
        else [f"--address={PREFIX}.1:6379"]
    )
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            inside(name, command),
            env=environment(None) | JOIN | variables,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    try:
        wait_for(lambda: b"Ray runtime started" in (directory / "log").read_bytes(), process)
        yield process
    finally:
        kill(process)
        shutil.rmtree(directory, ignore_errors=True)
