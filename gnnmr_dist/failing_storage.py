"""Storage that is full, gone or silent: told in one line, within bounded time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from gnnmr_dist.errors import RunError
from gnnmr_dist.storage import Address

T = TypeVar("T")


@contextmanager
def told_in_one_line(address: Address, what: str) -> Iterator[None]:
    """Turn a failing disk or store (full, gone, forbidden) into one line.

    Raises:
        RunError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise RunError(f"{os.fspath(address)}: {what} could not be written: {reason}") from error


def within(seconds: float, work: Callable[[], T], address: Address, what: str) -> T:
    """What ``work`` returns, done in a thread that is given up after ``seconds``: a store may not answer for ever.

    Raises:
        RunError: it took longer.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="storage", daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError:
        if done.done():
            raise  # of the work's own
        reason = f"{what} could not be written within {seconds:g} s"
        raise RunError(f"{os.fspath(address)}: {reason}") from None
