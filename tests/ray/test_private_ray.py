"""A Ray that the package starts itself: reachable from this machine only, and left alone by other runs."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest
from commands import below, has_checkpoint, losses, model_bytes, run, started, train_command, wait_for
from sockets import address_of, listening

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets through /proc"),
]


def test_addresses_are_read_right() -> None:
    assert address_of("0100007F" if sys.byteorder == "little" else "7F000001") == "127.0.0.1"
    assert address_of("0" * 32) == "::"


def test_nothing_listens_beyond_loopback(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    seen: set[str] = set()
    with started(train_command(dataset, output, "--num-workers", "2")) as process:

        def look() -> bool:
            seen.update(listening([process.pid, *below(process.pid)]))
            return has_checkpoint(output, "epoch-00002-step-0000005")()

        wait_for(look, process)
        out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), out
    assert seen
    assert all(ipaddress.ip_address(address).is_loopback for address in seen), seen
    assert losses(output) == losses(undisturbed)
    assert model_bytes(output) == model_bytes(undisturbed)


@pytest.mark.slow  # on a Ray that is there already: test_training_on_ray.py
def test_more_than_the_machine_has_is_refused_on_a_private_ray(dataset: Path, tmp_path: Path) -> None:
    ended = run(train_command(dataset, tmp_path / "run", "--num-workers", "1", "--use-gpu", "always"))
    assert ended.code == 2, ended.out
    assert ended.err.count("\n") == 1, ended.err
    assert "1 CPU and 1 GPU" in ended.err
    assert not (tmp_path / "run").exists()
