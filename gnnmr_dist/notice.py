"""A wish that training stops at the next step and is kept: who utters it, and what all workers have agreed on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from gnnmr_dist.errors import Stopped


class Wish(IntEnum):
    """What to do after the next step; where workers differ the largest counts."""

    GO_ON = 0
    MOVE = 1
    """Save; the workers start again, elsewhere if need be (one of them is about to be lost)."""
    END = 2
    """Save; the run ends here and waits for ``--resume``."""


def _nobody() -> bool:
    return False


@dataclass
class Notice:
    """One worker's ear, and what all workers agreed on after a step (:meth:`Mesh.sum_step` sets it)."""

    told: Wish = Wish.GO_ON
    agreed: Wish = Wish.GO_ON
    leaving: Callable[[], bool] = _nobody
    """Asked after every step: whether this worker's place is about to be taken away."""

    def tell(self, wish: Wish) -> None:
        """Take a wish; a smaller one than before changes nothing. Any thread and any signal handler may call it."""
        self.told = max(self.told, wish)

    def heard(self) -> Wish:
        """What this worker has heard so far."""
        return max(self.told, Wish.MOVE) if self.leaving() else self.told


@contextmanager
def stopped_by_sigterm(when: str) -> Iterator[None]:
    """While open, SIGTERM raises :class:`Stopped` in the main thread: for work that is done anew on resuming."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Stopped(f"asked to end {when}")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ended_by_sigterm(notice: Notice, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While open, SIGTERM is a wish to end; a second one does what it did before. Only in the main thread.

    ``waiting`` is called by the first one's handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(number: int, frame: object) -> None:
        signal.signal(number, before)
        notice.tell(Wish.END)
        waiting()

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
