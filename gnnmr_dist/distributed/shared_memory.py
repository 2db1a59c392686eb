"""Gathers between workers of one machine: each writes its part into memory that all of them map, and tells the others.

gloo carries every byte through sockets, with two copies in the system and threads that take the processor from
training and have to be woken (docs/performance.md has what it costs). Here it serves to find the memory only; NCCL does
the like.

The memory has no name: it is gone with the last process that maps it, however that ends. It counts as the workers' own
and is not subject to the size of /dev/shm.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
import torch
import torch.distributed as dist
from numba import types
from numba.extending import intrinsic
from torch import Tensor

BUFFERS = 2
"""A worker tells turn t + 1 when it is done with turn t, and writes turn t + 2 when all have told t + 1."""

AT_ONCE, SOON = 2e-3, 1.0
"""Seconds that a worker looks for the others without a pause, and then with short ones (assumed)."""

SHORT, LONG = 1e-4, 2e-3
"""Seconds of a pause before and after :data:`SOON` (assumed)."""

NAME = "gnnmr-exchange"
_PAGE, _LINE, _ADDRESS = 4096, 64, 96
_MARK = slice(32, 64)
"""Where the first line holds random bytes that say which memory it is."""


class SharedMemory:
    """What the workers of an axis have in common: the turn that each has told, and room for :data:`BUFFERS` gathers.

    All calls are collective. ``usable``: all workers could map it; the same on all of them. ``what``: what errors call
    a place on the axis.
    """

    def __init__(self, axis: dist.ProcessGroup, timeout_seconds: float, what: str) -> None:
        self.axis, self.timeout_seconds, self.what = axis, timeout_seconds, what
        self.place, self.size = dist.get_rank(axis), dist.get_world_size(axis)
        self.usable, self.turn, self._awaited = True, 0, 0
        self._grow(_PAGE)

    def gather(self, own: Tensor) -> Tensor | None:
        """All workers' equal tensors [workers, ...]; None where memory cannot be shared. Valid until the next one."""
        room = self.room(own[None], 1)
        if room is not None:
            room[self.place] = own.detach()
            self.tell()
            self.wait()
        return room

    def room(self, own: Tensor, rows: int) -> Tensor | None:
        """The memory of the next gather, [workers * rows, ...] of ``own``'s kind; None where it cannot be shared.

        What a gather brought is valid until this worker tells the next one.

        Raises:
            RuntimeError: the gather before was not awaited.
        """
        shape = (self.size * rows, *own.shape[1:])
        wanted = torch.Size(shape).numel() * own.element_size()
        if self._awaited != self.turn:
            raise RuntimeError(
                f"shared memory: expected turn {self.turn} to be awaited before the next, got {self._awaited}"
            )
        if self.usable and wanted > self._buffers.shape[1]:
            self._grow(wanted * 5 // 4)
        if not self.usable:
            return None
        self.turn += 1
        return self._buffers[self.turn % BUFFERS, :wanted].view(own.dtype).view(shape)

    def tell(self) -> None:
        """Let the others know that this worker's part of the turn is written."""
        _tell(self._told, self.place, self.turn)

    def wait(self) -> None:
        """Return when all workers' parts of the turn are there.

        Raises:
            RuntimeError: a worker is gone, or has told nothing after ``timeout_seconds``.
        """
        began = looked = time.monotonic()
        while not _all_told(self._told, self.turn):
            now = time.monotonic()
            if now - began < AT_ONCE:
                os.sched_yield()
                continue
            if now - looked > SOON:
                looked = now
                self._look_after_them(now - began)
            time.sleep(SHORT if now - began < SOON else LONG)
        self._awaited = self.turn

    def _look_after_them(self, waited: float) -> None:
        gone = [n for n in range(self.size) if _is_gone(int(self._told[n, 1]))]
        late = [n for n in range(self.size) if self._told[n, 0] < self.turn]  # who told and went is not late
        for n in late:
            if n in gone:
                raise RuntimeError(f"shared memory: the worker of {self.what} {n} is gone")
        if late and waited > self.timeout_seconds:
            raise RuntimeError(
                f"shared memory: expected all parts within {self.timeout_seconds:g} s, got none of {self.what} "
                f"{late[0]}"
            )

    def _grow(self, wanted: int) -> None:
        """Make and map new memory, unless one of the workers cannot."""
        head, each = (-(-size // _PAGE) * _PAGE for size in (self.size * _LINE, wanted))
        total = head + BUFFERS * each
        with _nameless_file(total if self.place == 0 else 0) as file:
            message = _message(file)
            dist.broadcast(message, dist.get_global_rank(self.axis, 0), group=self.axis)
            mapped: Any = _mapped(bytes(message.tolist()), total)
            if mapped is not None:
                place = self.place * _LINE + 8
                mapped[place : place + 8] = _own_number().to_bytes(8, sys.byteorder)
            all_could = torch.tensor([mapped is not None], dtype=torch.int64)
            dist.all_reduce(all_could, dist.ReduceOp.MIN, group=self.axis)
        self.usable = bool(all_could)
        if not self.usable:
            mapped, head, each = bytearray(self.size * _LINE), self.size * _LINE, 0
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        self._told = memory[: self.size * _LINE].view(torch.int64).view(self.size, -1).numpy()
        self._buffers = memory[head:].view(BUFFERS, each)


@contextmanager
def _nameless_file(size: int) -> Iterator[int | None]:
    """A file in memory, with all its pages; None of no size, and where the system has none, or too little, to give."""
    with ExitStack() as closing:
        file = None
        if size > 0 and hasattr(os, "memfd_create"):
            with suppress(OSError):
                made = os.memfd_create(NAME, os.MFD_CLOEXEC)
                closing.callback(os.close, made)
                os.posix_fallocate(made, 0, size)  # now or never: later it would be a SIGBUS
                file = made
        yield file


def _message(file: int | None) -> Tensor:
    """What others find a file by, uint8 [128]: its mark in 32 bytes, which is in it too, and its address."""
    mark, address = os.urandom(32), b""
    if file is not None:
        os.pwrite(file, mark, _MARK.start)
        address = f"/proc/{_own_number()}/fd/{file}".encode()
    return torch.tensor(list(mark + address.ljust(_ADDRESS, b"\0")), dtype=torch.uint8)


def _mapped(message: bytes, size: int) -> mmap.mmap | None:
    """The memory that a message tells of; None where there is none at its address here, or another."""
    mark, address = message[:32], message[32:].rstrip(b"\0").decode()
    with ExitStack() as closing, suppress(OSError, ValueError):
        if not os.readlink(address).startswith(f"/memfd:{NAME}"):
            return None
        file = os.open(address, os.O_RDWR | os.O_CLOEXEC)
        closing.callback(os.close, file)
        found = mmap.mmap(file, size)
        return found if found[_MARK] == mark else None
    return None


def _own_number() -> int:
    """This process's number in /proc, which need not be the one it has in a process namespace of its own; 0 without."""
    try:
        return int(os.readlink("/proc/self"))
    except (OSError, ValueError):
        return 0


def _is_gone(number: int) -> bool:
    """Whether a process of /proc has ended, its parent having noticed or not."""
    try:
        state = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return state in (b"Z", b"X")


@intrinsic
def _fence(_: Any) -> Any:
    """Nothing written or read before it comes after it, nor the other way round, as other processors see it."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        del signature, values
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), build


@numba.njit(cache=True, nogil=True)
def _tell(told: Any, place: int, turn: int) -> None:
    _fence()
    told[place, 0] = turn


@numba.njit(cache=True, nogil=True)
def _all_told(told: Any, turn: int) -> bool:
    for n in range(told.shape[0]):
        if told[n, 0] < turn:
            return False
    _fence()
    return True
