"""A rehearsal of a cluster on this machine: a head node and further nodes, each with a raylet of its own.

    python -m cluster.local up --nodes 3      # prints the variables that commands need to reach it
    python -m cluster.local status
    python -m cluster.local mend              # starts nodes that are gone anew, as a cluster would
    python -m cluster.local down              # ends what `up` started, and removes its files

Everything listens on loopback and asks for a token, which `up` draws and keeps in a file that only its owner may read.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.processes import Process, end, find, name_of, session_of
from gnnmr_dist.cli import Parser, guarded
from gnnmr_dist.errors import InputError, RunError

HOST = "127.0.0.1"
STATE, TOKEN = "state.json", "token"
START_SECONDS, TRIES = 150.0, 10


@dataclass(frozen=True)
class Node:
    """A node: its name, and the process that leads its session."""

    name: str
    pid: int
    started: int


@dataclass(frozen=True)
class State:
    """What `up` started, as `status` and `down` find it."""

    port: int
    dashboard_port: int
    cpus: int
    nodes: list[Node]


def default_directory() -> Path:
    """Where a rehearsal keeps its files; short, for Ray's sockets lie below it and their paths are limited."""
    return Path(tempfile.gettempdir()) / f"gnnmr-cluster-{os.getuid()}"


def client_variables(directory: Path, state: State) -> dict[str, str]:
    """What `ray job submit` and drivers on this machine need to reach the cluster; names the token's file only."""
    return {
        "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{state.dashboard_port}",
        "RAY_ADDRESS": f"{HOST}:{state.port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(directory / TOKEN),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes the machine's outward address
    }


def up(directory: Path, nodes: int, cpus: int, *, dashboard: bool = True) -> State:
    """Start a head and ``nodes - 1`` further nodes with ``cpus`` logical CPUs each.

    Without ``dashboard`` no jobs can be submitted, and the head starts sooner.

    Raises:
        InputError: a rehearsal is there already, or the directory is somebody else's.
        RunError: a node did not start; what had started is ended again.
    """
    _make_directory(directory)
    _write_private(directory / TOKEN, secrets.token_hex(32))
    state = State(_free_port(), _free_port() if dashboard else 0, cpus, [])
    try:
        for number in range(nodes):
            state = _begin(directory, "head" if number == 0 else f"node-{number}", state)
    except BaseException:
        down(directory)
        raise
    return state


def read_state(directory: Path) -> State:
    """What runs there; raises InputError where there is no rehearsal."""
    try:
        known = json.loads((directory / STATE).read_text(encoding="utf-8"))
        nodes = [Node(**node) for node in known["nodes"]]
        return State(known["port"], known["dashboard_port"], known["cpus"], nodes)
    except FileNotFoundError as error:
        raise InputError(f"{directory}: expected a cluster that `up` started, found none") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{directory / STATE}: expected what `up` wrote, got {error}") from error


def processes(node: Node) -> list[Process]:
    """The node's processes; empty when it is gone."""
    return session_of(node.pid, node.started)


def mend(directory: Path) -> list[str]:
    """Start anew the nodes that have lost their raylet; returns their names.

    Raises:
        InputError: there is no rehearsal, or its head is gone: nothing can join it.
        RunError: a node did not start.
    """
    state = read_state(directory)
    lost = [node for node in state.nodes if not _whole(node)]
    if any(node.name == "head" for node in lost):
        raise InputError(f"{directory}: expected the head node to run, got none; `down` and `up` start anew")
    for node in lost:
        end(processes(node))
        state = _begin(directory, node.name, state)
    return [node.name for node in lost]


def _begin(directory: Path, name: str, state: State) -> State:
    """Start a node, in a few tries: on a busy machine Ray gives up one whose agents need more than 15 seconds."""
    for left in reversed(range(TRIES)):
        (directory / f"{name}.log").unlink(missing_ok=True)
        node = _start(directory, name, state)
        state = replace(state, nodes=[*(n for n in state.nodes if n.name != name), node])
        _write_private(directory / STATE, json.dumps(asdict(state)))
        try:
            _wait_until_started(directory, node)
            return state
        except RunError:
            if left == 0:
                raise
            end(processes(node), grace=1.0)
    raise AssertionError("unreachable")


def _whole(node: Node) -> bool:
    return any(name_of(process.pid) == "raylet" for process in processes(node))


def down(directory: Path) -> None:
    """End every process that `up` started, the head last, and remove the directory."""
    for node in reversed(read_state(directory).nodes if (directory / STATE).exists() else []):
        end(processes(node))
    shutil.rmtree(directory)


def _make_directory(directory: Path) -> None:
    if sys.platform != "linux":
        raise InputError("cluster.local: expected Linux (it tells processes by /proc), got " + sys.platform)
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise InputError(
            f"{directory}: expected nothing there; `python -m cluster.local down` removes a rehearsal"
        ) from error


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_suffix(".tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    draft.replace(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _start_command(state: State, files: Path, head: bool, cpus: int) -> list[str]:
    command = [sys.executable, "-m", "cluster.loopback_node", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={HOST}", f"--num-cpus={cpus}", f"--temp-dir={files}"]
    # Ray's own choice of the first is one for the whole machine; for the others it waits 15 s until an agent has chosen
    agents = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    command += [f"--{agent}-port={_free_port()}" for agent in agents]
    if not head:
        return [*command, f"--address={HOST}:{state.port}"]
    dashboard = [f"--dashboard-host={HOST}", f"--dashboard-port={state.dashboard_port}"]
    if state.dashboard_port == 0:
        dashboard = ["--include-dashboard=false"]
    client = f"--ray-client-server-port={_free_port()}"  # Ray's own choice is the same for every cluster of a machine
    return [*command, "--head", f"--port={state.port}", client, *dashboard]


def _start(directory: Path, name: str, state: State) -> Node:
    command = _start_command(state, directory / name, name == "head", state.cpus)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    variables = {
        key: value for key, value in client_variables(directory, state).items() if "ADDRESS" not in key
    }
    variables |= {"GLOO_SOCKET_IFNAME": "lo", "RAY_USAGE_STATS_ENABLED": "0"}
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, directory / f"{name}.log", writing, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawnp(command[0], command, kept | variables, file_actions=files, setsid=True)
    there = find(pid)
    return Node(name, pid, 0 if there is None else there.started)


def _wait_until_started(directory: Path, node: Node) -> None:
    log, limit = directory / f"{node.name}.log", time.monotonic() + START_SECONDS
    while "Ray runtime started" not in (text := log.read_text(encoding="utf-8", errors="replace")):
        if find(node.pid) is None or time.monotonic() > limit:
            last = [line.strip() for line in text.splitlines() if line.strip()][-1:] or ["no message"]
            raise RunError(f"node {node.name} did not start: {last[0]}")
        time.sleep(0.1)


def _shell_lines(directory: Path, state: State) -> str:
    return "\n".join(f"export {key}={value}" for key, value in client_variables(directory, state).items())


def _up(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.nodes <= 64 or arguments.cpus < 1:
        raise InputError(
            f"expected 1 to 64 nodes of 1 or more CPUs, got {arguments.nodes} of {arguments.cpus}"
        )
    state = up(arguments.directory, arguments.nodes, arguments.cpus)
    print(_shell_lines(arguments.directory, state))
    print(f"{arguments.nodes} nodes run; files and logs: {arguments.directory}", file=sys.stderr)


def _status(arguments: argparse.Namespace) -> None:
    state = read_state(arguments.directory)
    print(_shell_lines(arguments.directory, state))
    for node in state.nodes:
        count = len(processes(node))
        print(f"{node.name}: {f'{count} processes' if count else 'gone'}", file=sys.stderr)


def _mend(arguments: argparse.Namespace) -> None:
    print(f"started anew: {', '.join(mend(arguments.directory)) or 'none'}", file=sys.stderr)


def _down(arguments: argparse.Namespace) -> None:
    read_state(arguments.directory)
    down(arguments.directory)


def _command(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m cluster.local", description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    for name, action, text in (
        ("up", _up, "start a head and further nodes"),
        ("status", _status, "the variables again, and what runs"),
        ("mend", _mend, "start nodes that are gone anew"),
        ("down", _down, "end what `up` started and remove its files"),
    ):
        verb = verbs.add_parser(name, help=text)
        verb.add_argument("--directory", type=Path, default=default_directory(), metavar="DIR")
        verb.set_defaults(action=action)
    verbs.choices["up"].add_argument("--nodes", type=int, default=2, help="nodes, the head among them [2]")
    verbs.choices["up"].add_argument("--cpus", type=int, default=1, help="logical CPUs of each node [1]")
    arguments = parser.parse_args(argv)
    arguments.directory = arguments.directory.absolute()
    arguments.action(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return guarded(_command, argv)


if __name__ == "__main__":
    sys.exit(main())
