"""A training run on the cluster that is disturbed, and goes on as a user would have it go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from faults.checks import train_options
from faults.cluster import Cluster, there
from gnnmr_dist.checkpoint import MANIFEST
from gnnmr_dist.errors import RunError

WORKERS = 2
PAUSE = 2.0  # seconds at most between a sign of life and the next kill


class Campaign:
    """One run directory and the command that trains in it now."""

    def __init__(self, output: Path, dataset: Path, epochs: int, limit: float, cluster: Cluster) -> None:
        self.output, self.limit, self.cluster = output, limit, cluster
        self.options = [*train_options(dataset, output, epochs), "--num-workers", str(WORKERS)]
        self.options += ["--max-failures", "1000"]
        self._command: subprocess.Popen[bytes] | None = None
        self._old: set[int] = set()  # what an earlier kill has ended or is about to end

    def __enter__(self) -> Campaign:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._command is not None and self._command.poll() is None:
            self._command.kill()
            self._command.wait()

    def finished(self) -> bool:
        """Whether the command has ended with success; raises RunError when it failed on its own account."""
        code = self._command.poll()
        if code not in (None, 0):
            raise RunError(f"{self.output}: the command ended with {code}: {self._last_words()}")
        return code == 0

    def burst(self, kinds: Sequence[str], saving: bool, chance: random.Random) -> list[dict[str, Any]]:
        """Kill once or more, each time before the run goes on again, then wait until it does.

        Args:
            kinds: what to kill, one after the other.
            saving: the first kill waits until a checkpoint is being written.
            chance: of moments and victims.

        Returns:
            A record of each kill; none when the run had ended before.
        """
        told: list[dict[str, Any]] = []
        times: list[float] = []
        limit = time.monotonic() + self.limit
        try:
            for kind in kinds:
                first = not told
                victim = self._victim(kind, saving and first, first, chance)
                if victim is None:
                    break  # the run had ended
                self._old.update(self.cluster.workers())
                before, limit = self.newest(), time.monotonic() + self.limit
                os.kill(victim, signal.SIGKILL)
                times.append(time.monotonic())
                hit = bool(self._incomplete())
                told.append({"kind": kind, "saving": saving and first, "half_written": hit, "after": before})
                if kind in ("command", "controller"):
                    self._old.update(self.cluster.controllers())
                    self._ends_within(self.limit)
                    self._start("--resume")
            if told:
                self._goes_on(limit)
            ended = {"recovered": True}
        except TimeoutError as error:
            ended = {"recovered": False, "why": str(error)}
        now = time.monotonic()
        if "raylet" in [kill["kind"] for kill in told]:
            self.cluster.mend()
        common = {"run": self.output.name, **ended}
        return [
            kill | common | {"seconds": round(now - at, 2), "overtaken": n + 1 < len(told)}
            for n, (kill, at) in enumerate(zip(told, times, strict=True))
        ]

    def complete(self) -> None:
        """Wait for the run to end by itself."""
        self._command.wait(self.limit * 4)
        self.finished()

    def newest(self) -> str:
        """Name of the newest whole checkpoint, empty when there is none."""
        names = [place.parent.name for place in self.output.glob(f"checkpoints/*/epoch-*/{MANIFEST}")]
        return max(names, default="")

    def _victim(self, kind: str, saving: bool, alive: bool, chance: random.Random) -> int | None:
        """A process to kill at once; None when the run has ended. ``alive``: only after a checkpoint."""
        limit = time.monotonic() + self.limit
        while True:
            if alive and self._until(lambda: self.newest() > "", limit) is None:
                return None
            found = self._until(lambda: self._found(kind), limit)
            if found is None:
                return None
            victim, moment = chance.choice(found), time.monotonic() + chance.random() * PAUSE
            if self._until(lambda m=moment: time.monotonic() > m, limit) is None:
                return None
            if saving and self._until(self._incomplete, limit, pause=0.0002) is None:
                return None
            if there(victim) is not None:
                return victim

    def _found(self, kind: str) -> list[int]:
        found: dict[str, Callable[[], list[int]]] = {
            "worker": self.cluster.workers,
            "raylet": self.cluster.raylets,
            "controller": self.cluster.controllers,
            "command": lambda: [self._command.pid],
        }
        return [pid for pid in found[kind]() if pid not in self._old]

    def _incomplete(self) -> bool:
        """Whether a checkpoint is being written (or was left half-written) by the newest attempt."""
        attempts = sorted(self.output.glob("checkpoints/attempt-*"))
        if not attempts:
            return False
        with suppress(FileNotFoundError):
            for place in os.scandir(attempts[-1]):
                if place.name.startswith("epoch-") and not os.path.exists(f"{place.path}/{MANIFEST}"):
                    return True
        return False

    def _until(self, what: Callable[[], Any], limit: float, pause: float = 0.05) -> Any:
        """What ``what`` gives once it is true; None when the command has ended with success before.

        Raises:
            TimeoutError: neither came before ``limit``.
            RunError: the command failed.
        """
        while not (found := what()):
            if self.finished():
                return None
            if time.monotonic() > limit:
                raise TimeoutError(f"nothing within {self.limit:g} s: {self._last_words()}")
            time.sleep(pause)
        return found

    def _goes_on(self, limit: float) -> None:
        """Wait until workers that started after the kill have written a checkpoint, or have come to the end."""
        self._until(lambda: not any(map(there, self._old)), limit)
        last = self.newest()
        self._until(lambda: self.newest() > last, limit)

    def _ends_within(self, seconds: float) -> None:
        try:
            self._command.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self._command.kill()
            raise TimeoutError(f"the command did not end within {seconds:g} s") from error

    def _start(self, *more: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        fixed = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        with open(f"{self.output}.log", "ab") as log:
            self._command = subprocess.Popen(
                [sys.executable, "-m", "gnnmr_dist.train", *self.options, *more],
                env=kept | fixed | self.cluster.variables(),
                cwd=tempfile.gettempdir(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _last_words(self) -> str:
        lines = Path(f"{self.output}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else "it said nothing"
