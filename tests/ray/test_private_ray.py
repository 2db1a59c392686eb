"""A Ray that the package starts itself: reachable from this machine only, and left alone by other runs."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest
from commands import below, has_checkpoint, losses, model_bytes, run, started, train_command, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets through /proc"),
]


def listening(pids: list[int]) -> list[str]:
    """Addresses on which any of the processes accepts TCP connections."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(str(descriptor.readlink()))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.append(_address(fields[1].partition(":")[0]))
    return found


def _address(words: str) -> str:
    """An address of /proc/net/tcp: words of 4 bytes, each in the machine's order."""
    data = b"".join(int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    address = ipaddress.ip_address(data)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def test_addresses_are_read_right() -> None:
    assert _address("0100007F" if sys.byteorder == "little" else "7F000001") == "127.0.0.1"
    assert _address("0" * 32) == "::"


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


def test_more_than_the_machine_has_is_refused_on_a_private_ray(dataset: Path, tmp_path: Path) -> None:
    ended = run(train_command(dataset, tmp_path / "run", "--num-workers", "1", "--use-gpu", "always"))
    assert ended.code == 2, ended.out
    assert ended.err.count("\n") == 1, ended.err
    assert "1 CPU and 1 GPU" in ended.err
    assert not (tmp_path / "run").exists()
