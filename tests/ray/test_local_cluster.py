"""`python -m cluster.local`: three nodes of this machine with a token; submitted jobs; a node lost mid-epoch."""

from __future__ import annotations

import http.client
import ipaddress
import os
import shutil
import signal
import stat
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from commands import (
    Ended,
    assert_same,
    has_checkpoint,
    run,
    started,
    steps,
    title,
    train_command,
    wait_for,
)
from sockets import endpoints, listening

from cluster.local import Node, State, client_variables, processes, read_state
from cluster.processes import find

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets through /proc"),
]


@dataclass(frozen=True)
class Rehearsal:
    """A running rehearsal, and what its clients need."""

    directory: Path
    state: State
    token: str
    variables: dict[str, str]

    def pids(self) -> list[int]:
        """Every process of every node."""
        return [process.pid for node in self.state.nodes for process in processes(node)]


def local(verb: str, directory: Path, *options: str) -> Ended:
    return run(
        [sys.executable, "-m", "cluster.local", verb, "--directory", str(directory), *options], cwd=ROOT
    )


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Rehearsal]:
    holder = Path(tempfile.mkdtemp(prefix="gl-"))  # short: Unix sockets' paths are
    directory = holder / "c"
    begun = local("up", directory, "--nodes", "3")
    assert begun.code == 0, begun.err
    state = read_state(directory)
    token = (directory / "token").read_text()
    found = Rehearsal(directory, state, token, client_variables(directory, state))
    assert begun.out == "".join(f"export {name}={value}\n" for name, value in found.variables.items())
    try:
        yield found
        pids = found.pids()
        assert token not in everything_written(directory)
    finally:
        ended = local("down", directory)
    assert (ended.code, ended.err) == (0, "")
    assert len(pids) > 10
    assert not [pid for pid in pids if find(pid) is not None]
    assert not list(holder.iterdir())
    assert local("status", directory).code == 2
    shutil.rmtree(holder)


def everything_written(directory: Path) -> str:
    """All text below the directory but the token's file: logs of all nodes, jobs and workers, settings."""
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != "token"]
    assert any(file.name.startswith("raylet") for file in files)
    return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files)


def submit(rehearsal: Rehearsal, *entrypoint: str, variables: dict[str, str] | None = None) -> Ended:
    """`ray job submit` of the project as its working directory, from the top of the repository."""
    command = [str(Path(sys.executable).with_name("ray")), "job", "submit"]
    command += ["--runtime-env", "cluster/runtime_env.yaml", "--", *entrypoint]
    return run(command, variables=rehearsal.variables if variables is None else variables, cwd=ROOT)


def test_it_listens_on_loopback_and_keeps_its_token_to_itself(rehearsal: Rehearsal) -> None:
    seen = listening(rehearsal.pids())
    assert len(seen) > 10
    assert all(ipaddress.ip_address(address).is_loopback for address in seen), seen
    assert len(rehearsal.token) == 64
    modes = [
        stat.S_IMODE((rehearsal.directory / name).stat().st_mode) for name in (".", "token", "state.json")
    ]
    assert modes == [0o700, 0o600, 0o600]
    again = local("up", rehearsal.directory)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "expected nothing there" in again.err


# A method of each of Ray's gRPC services: head, raylets, object managers, workers, agents, client server.
METHODS = [
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "CoreWorkerService/GetCoreWorkerStats",
    "ReporterService/GetTraceback",
    "RayletDriver/ClusterInfo",
]


def answer(port: int) -> str:
    """What a port says to somebody without the token: "refused", or the first bytes that it gives away."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=10) as page:
            return str(page.read(6).decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        return "refused" if error.code in (401, 403) else f"HTTP {error.code}"
    except (OSError, http.client.HTTPException):  # no HTTP: gRPC
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            codes = {code_of(channel, f"/ray.rpc.{method}") for method in METHODS}
    return "refused" if codes <= {"UNAUTHENTICATED", "UNIMPLEMENTED"} and len(codes) == 2 else str(codes)


def code_of(channel: grpc.Channel, method: str) -> str:
    try:
        channel.unary_unary(method)(b"", timeout=10)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_every_port_asks_for_the_token_but_metrics(rehearsal: Rehearsal) -> None:
    answers = {port: answer(port) for _, port in endpoints(rehearsal.pids())}
    assert len(answers) > 10
    assert set(answers.values()) == {"refused", "# HELP"}, (
        answers
    )  # Prometheus' pages; SECURITY.md tells of them


def test_a_submitted_run_trains_on_two_nodes_with_its_log_followed(
    rehearsal: Rehearsal, dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    ended = submit(rehearsal, *train_command(dataset, output, "--num-workers", "2"))
    assert ended.code == 0, ended.out + ended.err
    assert [line.split()[1] for line in ended.out.splitlines() if line.startswith("epoch")] == [
        "1/3",
        "2/3",
        "3/3",
    ]
    assert "succeeded" in ended.out
    assert rehearsal.token not in ended.out + ended.err
    assert_same(output, undisturbed)


def test_bad_input_is_told_with_its_exit_code(rehearsal: Rehearsal, tmp_path: Path) -> None:
    missing = submit(rehearsal, *train_command(tmp_path / "none", tmp_path / "run", "--num-workers", "2"))
    assert missing.code == 1  # Ray's own, whatever the command's: that is in the message
    assert "command failed with exit code 2" in missing.out
    assert f"error: {tmp_path / 'none'}: expected a directory, got nothing there" in missing.out


@pytest.mark.slow
def test_a_failed_run_is_told_with_its_exit_code(rehearsal: Rehearsal, dataset: Path, tmp_path: Path) -> None:
    options = ["--learning-rate", "1e30", "--score", "dot", "--num-workers", "0"]  # no workers: sooner over
    diverged = submit(rehearsal, *train_command(dataset, tmp_path / "run", *options))
    assert diverged.code == 1
    assert "command failed with exit code 1" in diverged.out
    assert "failed: diverged: loss of " in diverged.out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "Invalid authentication token"),
    ],
)
def test_without_the_token_no_job_is_accepted(
    rehearsal: Rehearsal, changed: dict[str, str], told: str
) -> None:
    refused = submit(rehearsal, "true", variables=rehearsal.variables | changed)
    assert refused.code == 1
    assert told in refused.err
    assert "submitted successfully" not in refused.out


@pytest.mark.slow  # Ray tries for 20 s; that every port refuses is asked above
def test_without_the_token_no_driver_joins(rehearsal: Rehearsal, dataset: Path, tmp_path: Path) -> None:
    variables = rehearsal.variables | {"RAY_AUTH_TOKEN": "0" * 64}
    refused = run(train_command(dataset, tmp_path / "run", "--num-workers", "2"), variables=variables)
    assert refused.code == 2
    *attempts, error = refused.err.splitlines()  # Ray tries for 20 s and says so each time
    assert all("InvalidAuthToken" in line for line in attempts)
    assert error.startswith("error: RAY_ADDRESS: ")
    assert "token" in error
    assert not (tmp_path / "run").exists()


def with_train_workers(nodes: list[Node]) -> list[Node]:
    return [n for n in nodes if any(title(p.pid).startswith("ray::RayTrainWorker") for p in processes(n))]


@pytest.mark.slow
def test_a_node_lost_mid_epoch_changes_nothing(
    rehearsal: Rehearsal, dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output, nodes = tmp_path / "run", rehearsal.state.nodes
    command = train_command(dataset, output, "--num-workers", "2")
    with started(command, variables=rehearsal.variables) as process:
        wait_for(has_checkpoint(output, "epoch-00001-step-0000005"), process)
        hosts = with_train_workers(nodes)
        assert len(hosts) == 2
        assert any(title(p.pid).startswith("ray::_Board") for p in processes(nodes[0]))
        for lost in processes([node for node in hosts if node.name != "head"][-1]):
            os.kill(lost.pid, signal.SIGKILL)
        before = len(steps(output))
        out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out
    assert before < len(steps(undisturbed))
    assert sorted(p.name for p in output.glob("checkpoints/attempt-*")) == ["attempt-001"]
    assert_same(output, undisturbed)
