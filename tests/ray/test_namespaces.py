"""Two nodes with addresses of their own: one is lost mid-epoch, another takes its place, and the result is the same."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import assert_same, has_checkpoint, kill, started, steps, train_command, train_workers, wait_for
from namespaces import PREFIX, inside, ip, network, node, requires_namespaces

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def node_variables() -> dict[str, str]:
    return {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
    }


@pytest.mark.slow
def test_a_lost_node_is_replaced_and_nothing_changes(
    dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    requires_namespaces()
    output = tmp_path / "run"
    variables = node_variables()
    with ExitStack() as stack:
        names = stack.enter_context(network(2))
        stack.enter_context(node(names[0], 0, variables))
        lost = stack.enter_context(node(names[1], 1, variables))
        command = inside(names[0], train_command(dataset, output, "--num-workers", "2"))
        with started(command, f"{PREFIX}.1:6379", variables) as process:
            wait_for(has_checkpoint(output, "epoch-00001-step-0000005"), process)
            assert len(train_workers(lost.pid)) == 1
            kill(lost)
            before = len(steps(output))
            stack.enter_context(node(names[1], 1, variables))
            out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out
    assert before < len(steps(undisturbed))
    assert_same(output, undisturbed)


@pytest.mark.slow
def test_a_node_cut_off_the_network_is_given_up_and_cannot_meddle(
    dataset: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Its processes live on and still reach the storage; the others notice within the timeout."""
    requires_namespaces()
    output = tmp_path / "run"
    variables = node_variables()
    with ExitStack() as stack:
        names = stack.enter_context(network(3))
        stack.enter_context(node(names[0], 0, variables))
        cut = stack.enter_context(node(names[1], 1, variables))
        options = ["--num-workers", "2", "--timeout-seconds", "20"]
        command = inside(names[0], train_command(dataset, output, *options))
        with started(command, f"{PREFIX}.1:6379", variables) as process:
            wait_for(has_checkpoint(output, "epoch-00001-step-0000005"), process)
            assert len(train_workers(cut.pid)) == 1
            ip("-n", names[1], "link", "set", "eth0", "down")
            before = len(steps(output))
            stack.enter_context(node(names[2], 2, variables))
            out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, ""), out
    assert before < len(steps(undisturbed))
    assert_same(output, undisturbed)
