"""The rehearsal's own part: state, private files, processes told apart and ended. Nodes here are sleeping shells."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import local
from cluster.processes import Process, end, find, session_of
from gnnmr_dist.errors import InputError, RunError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tells processes by /proc")
NODE = 'echo "Ray runtime started"; (sleep 300; true) & setsid sleep 300 & wait'


def play(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(local, "_start_command", lambda *_: ["bash", "-c", script])


def test_up_records_its_nodes_and_down_ends_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, NODE)
    directory = tmp_path / "c"
    state = local.up(directory, nodes=2, cpus=1)
    try:
        assert [node.name for node in state.nodes] == ["head", "node-1"]
        assert local.read_state(directory) == state
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE((directory / name).stat().st_mode) for name in ("token", "state.json")} == {
            0o600
        }
        assert len(bytes.fromhex((directory / "token").read_text())) == 32
        assert (directory / "token").read_text() not in (directory / "state.json").read_text()
        found = [process for node in state.nodes for process in local.processes(node)]
        assert (
            len(found) >= 2 * 3
        )  # the shell, its subshell, and the process that left for a session of its own
        with pytest.raises(InputError, match="expected nothing there"):
            local.up(directory, nodes=1, cpus=1)
    finally:
        local.down(directory)
    assert not [process for process in found if find(process.pid) == process]
    assert not directory.exists()


def test_lost_nodes_are_started_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, NODE)
    monkeypatch.setattr(local, "_whole", lambda node: find(node.pid) is not None)
    state = local.up(tmp_path / "c", nodes=2, cpus=1)
    try:
        assert local.mend(tmp_path / "c") == []
        end(local.processes(state.nodes[1]))
        assert local.mend(tmp_path / "c") == ["node-1"]
        again = local.read_state(tmp_path / "c")
        assert again.nodes[0] == state.nodes[0]
        until = time.monotonic() + 20
        while len(local.processes(again.nodes[1])) < 3:  # its own children come a moment later
            assert time.monotonic() < until
            time.sleep(0.05)
        end(local.processes(again.nodes[0]))
        with pytest.raises(InputError, match="expected the head node to run"):
            local.mend(tmp_path / "c")
    finally:
        local.down(tmp_path / "c")


def test_a_node_that_does_not_start_takes_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    play(monkeypatch, "echo; echo no such port >&2; exit 3")
    with pytest.raises(RunError, match="node head did not start: no such port"):
        local.up(tmp_path / "c", nodes=2, cpus=1)
    assert not (tmp_path / "c").exists()


def test_another_process_of_the_same_number_is_let_be() -> None:
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as other:
        there = find(other.pid)
        assert there is not None
        assert [p.pid for p in session_of(other.pid, there.started)] == [other.pid]
        assert session_of(other.pid, there.started - 1) == []
        end([Process(there.pid, there.parent, there.session, there.started - 1)], grace=0.2)
        assert other.poll() is None
        end([there])
    assert find(other.pid) is None


def test_what_ignores_sigterm_is_killed() -> None:
    with subprocess.Popen(
        ["bash", "-c", "trap '' TERM; echo; sleep 300"], start_new_session=True, stdout=subprocess.PIPE
    ) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        there = find(deaf.pid)
        assert there is not None
        end(session_of(deaf.pid, there.started), grace=0.2)
    assert deaf.returncode == -9


def test_variables_name_the_token_by_file_only(tmp_path: Path) -> None:
    variables = local.client_variables(tmp_path, local.State(7, 8, 1, []))
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert variables["RAY_ADDRESS"] == "127.0.0.1:7"
    assert variables["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:8"
    assert variables["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in variables


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["down"], "expected a cluster that `up` started, found none"),
        (["status"], "expected a cluster that `up` started, found none"),
        (["up", "--nodes", "0"], "expected 1 to 64 nodes of 1 or more CPUs, got 0 of 1"),
        (["up", "--cpus", "0"], "expected 1 to 64 nodes of 1 or more CPUs, got 2 of 0"),
        (["sideways"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--directory", str(tmp_path / "c")] if arguments != ["sideways"] else []
    assert local.main([*arguments, *where]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_damaged_state_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state.json").write_text('{"port": 1}')
    assert local.main(["status", "--directory", str(tmp_path)]) == 2
    assert "expected what `up` wrote" in capsys.readouterr().err
