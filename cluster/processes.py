"""Processes of this machine read from /proc (Linux): which belong to a session somebody recorded, and ending them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process: its id, its parent's, its session's, and when it started (clock ticks since boot)."""

    pid: int
    parent: int
    session: int
    started: int


def find(pid: int) -> Process | None:
    """The running process of that id; None where there is none (a zombie counts as none)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else Process(pid, int(fields[1]), int(fields[3]), int(fields[19]))


def name_of(pid: int) -> str:
    """What the kernel calls the process, at most 15 characters; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def session_of(leader: int, started: int) -> list[Process]:
    """Every process of the session that ``leader``, started at ``started``, opened, and everything below them.

    The leader itself may be gone: a session keeps its number while it has members. If another process has the
    number by now, the session is over and the answer is empty.
    """
    there = find(leader)
    if there is not None and there.started != started:
        return []
    everyone = [p for entry in Path("/proc").glob("[0-9]*") if (p := find(int(entry.name))) is not None]
    found = {p.pid: p for p in everyone if p.session == leader}
    while more := [p for p in everyone if p.parent in found and p.pid not in found]:
        found |= {p.pid: p for p in more}
    return list(found.values())


def end(processes: Iterable[Process], grace: float = 10.0) -> None:
    """SIGTERM, and after ``grace`` seconds SIGKILL to those still there; returns when all are gone."""
    todo = list(processes)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, grace)):
        for process in todo:
            _signal(process, number)
        limit = time.monotonic() + seconds
        while (todo := [p for p in todo if _same(p)]) and time.monotonic() < limit:
            time.sleep(0.05)


def _same(process: Process) -> bool:
    """Whether it still runs; its parent may have changed, when the old one ended first."""
    now = find(process.pid)
    return now is not None and now.started == process.started


def _signal(process: Process, number: signal.Signals) -> None:
    if _same(process):
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            return
