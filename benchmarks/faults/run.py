"""A training run on the cluster that is disturbed, and goes on as a user would have it go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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

    def kill(self, kind: str, saving: bool, chance: random.Random) -> dict[str, Any] | None:
        """Kill once and wait for the run to go on; None when the run had ended before."""
        victim = self._victim(kind, saving, chance)
        if victim is None:
            return None  # the run had ended
        before, workers, started = self.newest(), self.cluster.workers(), time.monotonic()
        os.kill(victim, signal.SIGKILL)
        hit = bool(self._incomplete())
        told = {"kind": kind, "saving": saving, "half_written": hit, "run": self.output.name, "after": before}
        try:
            if kind in ("command", "controller"):
                self._ends_within(self.limit)
                self._start("--resume")
            self._goes_on(workers, started + self.limit)
        except TimeoutError as error:
            return told | {"recovered": False, "seconds": time.monotonic() - started, "why": str(error)}
        told |= {"recovered": True, "seconds": round(time.monotonic() - started, 2)}
        if kind == "raylet":
            self.cluster.mend()
        return told

    def complete(self) -> None:
        """Wait for the run to end by itself."""
        self._command.wait(self.limit * 4)
        self.finished()

    def newest(self) -> str:
        """Name of the newest whole checkpoint, empty when there is none."""
        names = [place.parent.name for place in self.output.glob(f"checkpoints/*/epoch-*/{MANIFEST}")]
        return max(names, default="")

    def _victim(self, kind: str, saving: bool, chance: random.Random) -> int | None:
        """A process to kill at once: it was found when the run was seen alive, and the chosen moment is now."""
        limit = time.monotonic() + self.limit
        if self._until(lambda: self.newest() > "", limit) is None:
            return None
        wait_until = time.monotonic() + chance.random() * PAUSE
        found = self._until(lambda: self._found(kind), limit)
        if found is None:
            return None
        victim = chance.choice(found)
        if self._until(lambda: time.monotonic() > wait_until, limit) is None:
            return None
        if saving and self._until(self._incomplete, limit, pause=0.0002) is None:
            return None
        return victim if there(victim) is not None else self._victim(kind, saving, chance)

    def _found(self, kind: str) -> list[int]:
        found: dict[str, Callable[[], list[int]]] = {
            "worker": self.cluster.workers,
            "raylet": self.cluster.raylets,
            "controller": self.cluster.controllers,
            "command": lambda: [self._command.pid],
        }
        return found[kind]()

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

    def _goes_on(self, old_workers: list[int], limit: float) -> None:
        """Wait until workers that started after the kill have written a checkpoint, or have come to the end."""
        self._until(lambda: not any(map(there, old_workers)), limit)
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
