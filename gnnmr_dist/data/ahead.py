"""Work done ahead of its use, in one thread: the next steps are sampled and gathered while this one is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(function: Callable[[A], B], arguments: Iterable[A], depth: int) -> Iterator[B]:
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
