"""Passing records on to trackers without ever waiting for them, and without ever failing with them."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gnnmr_dist.errors import innermost_error, without_secrets
from gnnmr_dist.trackers import OPEN, PLACE, Home, Tracker

Record = Mapping[str, Any]
Entry = tuple[int, dict[str, float]]

WAITING = 10_000
"""Entries that may wait for a slow tracker; what comes on top is left out of it."""
SECONDS_AT_END = 60.0
"""How long a command waits at its end for what its trackers have not taken yet."""


class Entries:
    """Records as entries for trackers: one per window of steps, that of an epoch's end together with the epoch's."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._held: dict[str, float] = {}

    def take(self, record: Record) -> Entry | None:
        """(steps done, values by name), or None for records that trackers are not told."""
        if record["kind"] == "steps":
            done = record["epoch"] * self._steps + record["step"] + 1
            values = self._of_steps(record)
            if record["step"] + 1 < self._steps:
                return done, {PLACE: done / self._steps} | values
            self._held = values
        if record["kind"] == "epoch":
            values, self._held = self._held | self._of_epoch(record), {}
            return (record["epoch"] + 1) * self._steps, {PLACE: record["epoch"] + 1.0} | values
        return None

    @staticmethod
    def _of_steps(record: Record) -> dict[str, float]:
        values = {
            f"train/{name}/{kind}": value
            for name, losses in record["losses"].items()
            for kind, value in losses.items()
        }
        return values | {
            "train/samples_per_second": record["samples_per_second"],
            "train/step_seconds": record["seconds"] / record["steps"],
            "train/exchange_seconds": record["exchange_seconds"] / record["steps"],
        }

    @staticmethod
    def _of_epoch(record: Record) -> dict[str, float]:
        values = {f"valid/{name}": value for name, value in record.get("valid", {}).items()}
        return values | {"epoch_seconds": record["seconds"]}


def tell(line: str) -> None:
    """One line on standard error."""
    print(line, file=sys.stderr, flush=True)


class Feed:
    """One tracker in a thread of its own. Once it fails it is told of, and left alone from then on."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], say: Callable[[str], None]) -> None:
        self.name, self._open, self._say = name, open_tracker, say
        self._entries: queue.Queue[Entry | bool] = queue.Queue(WAITING)
        self._failed = self._full = False
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def put(self, entry: Entry | bool) -> None:
        """Hand over an entry, or at the end whether training finished; never waits."""
        if self._failed:
            return
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            if not self._full:
                self._full = True
                self._say(f"{self.name}: too slow, it will lack some entries (metrics.jsonl has all)")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while not isinstance(entry := self._entries.get(), bool):
                step, values = entry
                if step > tracker.last:
                    tracker.log(step, values)
            tracker.close(entry)
        except Exception as error:
            self._failed = True
            reason = innermost_error(str(error)) if str(error).strip() else type(error).__name__
            self._say(
                without_secrets(f"{self.name}: {' '.join(reason.split())} (training goes on without it)")
            )


class Tracking:
    """The trackers of a run: opened by :meth:`begin`, told by :meth:`show`, given some time to finish on leaving."""

    def __init__(self, home: Home, say: Callable[[str], None] = tell) -> None:
        self._home, self._say = home, say
        self._entries, self._feeds = Entries(home.steps), list[Feed]()

    def begin(self) -> None:
        """Open every tracker that the settings ask for."""
        for name in self._home.settings.reporting.trackers:
            self._feeds.append(Feed(name, partial(OPEN[name], self._home), self._say))

    def show(self, record: Record) -> None:
        """Pass a record on."""
        entry = self._entries.take(record)
        if entry is not None:
            for feed in self._feeds:
                feed.put(entry)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for feed in self._feeds:
            feed.put(kind is None)
        end = time.monotonic() + SECONDS_AT_END
        for feed in self._feeds:
            feed.thread.join(timeout=max(0.0, end - time.monotonic()))
            if feed.thread.is_alive():
                self._say(
                    f"{feed.name}: not all was taken within {SECONDS_AT_END:.0f} s (metrics.jsonl has all)"
                )
