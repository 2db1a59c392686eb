"""``python -m gnnmr_dist.status``: how far a run is, in one line, from the files of its directory alone."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import MANIFEST
from gnnmr_dist.cli import Parser, guarded
from gnnmr_dist.config import Settings, build
from gnnmr_dist.errors import bad_input
from gnnmr_dist.reporting import records_backwards
from gnnmr_dist.runs import METRICS, MODEL, RUN, SETTINGS, RunDirectory

STALE_SECONDS = 600.0


@dataclass(frozen=True)
class Status:
    """How far a run is. Ages and ``left`` in seconds; None: not known."""

    state: str  # training, finished, failed, interrupted, stale
    reason: str
    epoch: int
    epochs: int
    step: int
    steps: int | None
    pretraining: int | None
    samples_per_second: float | None
    metric: str
    best: float | None
    best_epoch: int | None
    checkpoint: str | None
    checkpoint_age: float | None
    left: float | None
    age: float | None


@dataclass(frozen=True)
class _Seen:
    """The newest record of each kind that matters."""

    newest: Mapping[str, Any]
    window: Mapping[str, Any]
    epoch: Mapping[str, Any]
    validated: Mapping[str, Any]


def read_status(address: str, now: float, stale_after: float = STALE_SECONDS) -> Status:
    """Look at a run directory; ``now``: seconds since 1970.

    Raises:
        InputError: there is no run.
    """
    run = RunDirectory(address)
    settings, steps = _known(run)
    seen, noted = _look(run), run.status()
    place = seen.newest.get("epoch", 0), seen.newest.get("step", -1) + 1
    if seen.newest.get("kind") == "epoch" or (steps is not None and place[1] >= steps):
        place = place[0] + 1, 0
    if seen.newest.get("kind") == "pretraining":
        place = 0, 0
    times = [t for t in (seen.newest.get("time"), noted.get("time")) if isinstance(t, float | int)]
    age = max(0.0, now - max(times)) if times else None
    checkpoint, saved = _newest_checkpoint(run)
    metric, best = settings.evaluation.select_metric, seen.validated.get("best", {})
    state = _state(run, noted.get("status"), age, stale_after)
    return Status(
        state=state,
        reason=noted.get("reason", "") if state == noted.get("status") else "",
        epoch=place[0],
        epochs=settings.training.epochs,
        step=place[1],
        steps=steps,
        pretraining=seen.newest["epoch"] + 1 if seen.newest.get("kind") == "pretraining" else None,
        samples_per_second=seen.window.get("samples_per_second"),
        metric=metric,
        best=best.get(metric),
        best_epoch=best.get("epoch"),
        checkpoint=checkpoint,
        checkpoint_age=None if saved is None else max(0.0, now - saved),
        left=_left(settings, seen, place, steps),
        age=age,
    )


def _known(run: RunDirectory) -> tuple[Settings, int | None]:
    """The run's settings, and its steps of an epoch (older runs do not say)."""
    place = run.place(SETTINGS)
    try:
        settings = build((place, tomllib.loads(storage.read_bytes(place).decode())))
        steps = json.loads(storage.read_bytes(run.place(RUN))).get("steps_per_epoch")
    except (OSError, ValueError) as error:
        got = "none" if isinstance(error, FileNotFoundError) else str(error)
        raise bad_input(run.address, f"a run directory ({SETTINGS}, {RUN})", got) from None
    return settings, steps


def _look(run: RunDirectory) -> _Seen:
    """Read metrics.jsonl from its end, as far as is needed."""
    found: dict[str, Mapping[str, Any]] = {}
    place = run.place(METRICS)
    for record in records_backwards(place) if storage.exists(place) else ():
        found.setdefault("newest", record)
        found.setdefault(record["kind"], record)
        if "best" in record:
            found.setdefault("validated", record)
        if {"steps", "validated"} <= set(found):
            break
    newest, window, epoch, validated = (
        found.get(key, {}) for key in ("newest", "steps", "epoch", "validated")
    )
    return _Seen(newest, window, epoch, validated)


def _newest_checkpoint(run: RunDirectory) -> tuple[str | None, float | None]:
    """Name and time of the most advanced checkpoint that has a manifest; its files are not read."""
    for address in sorted(run.checkpoints(), key=lambda a: a.rsplit("/", 1)[-1], reverse=True):
        if storage.exists(manifest := storage.join(address, MANIFEST)):
            return address.rsplit("/", 1)[-1], storage.modified(manifest)
    return None, None


def _state(run: RunDirectory, noted: str | None, age: float | None, stale_after: float) -> str:
    if noted is not None and noted != "training":
        return noted
    old = age is None or age > stale_after
    if storage.exists(run.place(MODEL, MANIFEST)) and (noted is None or old):
        return "finished"
    return "stale" if old else "training"


def _left(settings: Settings, seen: _Seen, place: tuple[int, int], steps: int | None) -> float | None:
    """Seconds until all epochs are done, at the pace of the newest steps (older runs: of the newest epoch)."""
    if steps is None:
        return None
    epochs = settings.training.epochs - place[0] - place[1] / steps
    validation = seen.validated.get("valid_seconds", 0.0) / settings.training.valid_every
    if seen.window:
        return float(epochs * (steps * seen.window["seconds"] / seen.window["steps"] + validation))
    return float(epochs * (seen.epoch["seconds"] + validation)) if seen.epoch else None


def status_line(name: str, status: Status) -> str:
    """One line for people."""
    parts = [_where(status)]
    if status.state == "training" and status.samples_per_second is not None:
        parts.append(f"{status.samples_per_second:,.0f} samples/s")
    if status.best is not None:
        parts.append(f"best {status.metric} {status.best:.4f} (epoch {status.best_epoch})")
    if status.state != "finished":
        if status.checkpoint is not None:
            age = "" if status.checkpoint_age is None else f" {duration(status.checkpoint_age)} ago"
            parts.append(f"checkpoint {status.checkpoint}{age}")
        else:
            parts.append("no checkpoint")
    if status.state == "training" and status.left is not None:
        parts.append(f"at most {duration(status.left)} left")
    if status.age is not None and status.state != "stale":
        parts.append(f"{'written' if status.state == 'training' else 'ended'} {duration(status.age)} ago")
    if status.state in ("failed", "interrupted", "stale"):
        parts.append("--resume goes on" if status.checkpoint is not None else "start it again")
    return f"{name}: {', '.join(parts)}"


def _where(status: Status) -> str:
    if status.state == "finished":
        return f"finished after {status.epoch} epochs"
    state = status.state + (f" ({status.reason})" if status.reason else "")
    if status.state == "stale" and status.age is not None:
        state = f"stale, nothing written for {duration(status.age)}"
    if status.pretraining is not None:
        return f"{state}, pre-training epoch {status.pretraining} done"
    of = "" if status.steps is None else f"/{status.steps}"
    epoch = min(status.epoch + 1, status.epochs)
    return f"{state}, epoch {epoch}/{status.epochs}, step {status.step}{of}"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``1 h 20 min``, ``2 d 3 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m gnnmr_dist.status", description=__doc__.split(":", 1)[1].strip())
    made.add_argument("--run", metavar="DIR", required=True, help="run directory, wherever it lies")
    made.add_argument(
        "--stale-after",
        metavar="SECONDS",
        type=float,
        default=STALE_SECONDS,
        help=f"a run that wrote nothing for longer is called stale [{STALE_SECONDS:.0f}]",
    )
    return made


def command(argv: Sequence[str] | None) -> None:
    """Look, and print the line."""
    arguments = parser().parse_args(argv)
    print(
        status_line(arguments.run, read_status(arguments.run, time.time(), stale_after=arguments.stale_after))
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return guarded(command, argv)


if __name__ == "__main__":
    sys.exit(main())
