"""Work done ahead of its use: the next steps are sampled and gathered while this one is computed or exchanged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, repeat, takewhile
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(function: Callable[[A], B], arguments: Iterable[A], depth: int) -> Generator[B]:
    """``map(function, arguments)``, with up to ``depth`` results computed before they are asked for.

    Order, results and exceptions are those of ``map``; with depth 0 it is ``map``. When the iterator is closed, what
    has not begun is dropped. Compiled loops and torch run without Python's lock, so the thread uses another core.
    """
    if depth == 0:
        yield from map(function, arguments)
        return
    rest = iter(arguments)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[B]] = deque(pool.submit(function, a) for a in islice(rest, depth))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, a) for a in islice(rest, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def read_ahead(values: Iterator[A]) -> Iterator[A]:
    """The same values, the next one made by another thread while this one is used."""
    end: Any = object()
    made = ahead(lambda _: next(values, end), repeat(None), 1)
    yield from takewhile(lambda value: value is not end, made)


class Upcoming(Generic[B]):
    """The results of ``map(function, arguments)``, made ahead: in a thread, or when :meth:`meanwhile` is called.

    A process with one core for itself gains nothing from a thread. But it has time to spare while it waits for others:
    that is when to call :meth:`meanwhile`.
    """

    def __init__(self, function: Callable[[A], B], arguments: Iterable[A], *, threaded: bool) -> None:
        self._rest = ahead(function, arguments, 2 if threaded else 0)
        self._made: deque[B] = deque()
        self._threaded = threaded

    def __iter__(self) -> Iterator[B]:
        try:
            while True:
                try:
                    yield self._made.popleft() if self._made else next(self._rest)
                except StopIteration:
                    return
        finally:
            self._rest.close()

    def meanwhile(self) -> None:
        """Make the next result, unless a thread does or it is there already."""
        if not self._threaded and not self._made:
            self._made.extend(islice(self._rest, 1))
