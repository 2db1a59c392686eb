"""Which addresses processes listen on (Linux: /proc)."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable
from pathlib import Path


def listening(pids: Iterable[int]) -> list[str]:
    """Addresses on which any of the processes accepts TCP connections."""
    return [address for address, _ in endpoints(pids)]


def endpoints(pids: Iterable[int]) -> list[tuple[str, int]]:
    """(address, port) of every socket on which any of the processes accepts TCP connections."""
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
                address, _, port = fields[1].partition(":")
                found.append((address_of(address), int(port, 16)))
    return found


def address_of(words: str) -> str:
    """An address of /proc/net/tcp: words of 4 bytes, each in the machine's order."""
    data = b"".join(int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    address = ipaddress.ip_address(data)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
