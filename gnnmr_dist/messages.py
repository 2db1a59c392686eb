"""Between the command and its workers: records on their way to people, and the wish to end on its way to workers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import ray


class _Board:
    """An actor beside the command. Nobody waits in it for longer than he says."""

    def __init__(self) -> None:
        self.records: asyncio.Queue[Any] = asyncio.Queue()
        self.ending = asyncio.Event()

    async def put(self, record: Any) -> None:
        await self.records.put(record)

    async def get(self, seconds: float) -> Any:
        with suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self.records.get(), seconds)

    async def end(self) -> None:
        self.ending.set()

    async def ends(self, seconds: float) -> bool:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)
        return self.ending.is_set()


class Board:
    """What workers tell the command, and whether it wants them to end; travels to workers.

    It stays beside this process: on another node (Ray's choice for an actor of no CPUs) it would be lost with it.
    A call that Ray does not answer within ``seconds`` fails.
    """

    def __init__(self, seconds: float) -> None:
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        self.seconds = seconds
        self._actor = ray.remote(num_cpus=0, label_selector=here)(_Board).remote()

    def put(self, record: Any) -> None:
        """Leave a record for the command; raises RayError (also when the command is out of reach)."""
        ray.get(self._actor.put.remote(record), timeout=self.seconds)

    def get(self) -> Any:
        """The next record, None when there is none within a second; raises RayError."""
        return ray.get(self._actor.get.remote(1.0), timeout=self.seconds)

    def end(self) -> None:
        """Ask the workers to end; raises RayError."""
        ray.get(self._actor.end.remote(), timeout=self.seconds)

    def wait_for_end(self) -> None:
        """Return when the command wants its workers to end; raises RayError."""
        while not ray.get(self._actor.ends.remote(20.0), timeout=20.0 + self.seconds):
            pass
