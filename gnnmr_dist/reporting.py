"""What a run tells: metrics.jsonl for programs, one line per epoch for people, tables in Markdown."""

from __future__ import annotations

import json
import os
import sys
import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gnnmr_dist import storage
from gnnmr_dist.failing_storage import told_in_one_line
from gnnmr_dist.storage import Address

Record = Mapping[str, Any]


LOCAL_SECONDS, REMOTE_SECONDS = 5.0, 60.0
"""How long records wait at most for their file, in the course of steps: for one on a disk, for a new object."""


class MetricsLog:
    """A JSON-lines file of records, each with the ``time`` it was written (seconds since 1970), wherever it lies.

    Opened at a place in training, it drops what a cut-off run wrote beyond that place, so no step stands twice. Lines
    reach the file at :meth:`flush`, and by themselves some seconds after the last time: appended on a local disk.
    Object stores cannot append, so there each flush makes a new file in a directory beside it (``metrics.jsonl``:
    ``metrics/part-000001.jsonl``...).

    A local file is made anew whenever it is opened and kept open: what a process that was given up, but still lives,
    adds afterwards goes to the old one, which nobody sees.
    """

    def __init__(self, address: Address, epoch: int = 0, step: int = 0) -> None:
        self.address = address
        self._pending: list[str] = []
        self._patience = REMOTE_SECONDS if storage.is_uri(address) else LOCAL_SECONDS
        self._flushed = time.monotonic()
        if not storage.exists(address):
            storage.write_bytes_atomic(address, b"")
        files = _files(address)
        self._parts = len(files) - 1
        for file in files:
            content = storage.read_bytes(file)
            kept = "".join(line for line in _complete_lines(content) if _before(line, epoch, step)).encode()
            if kept != content or not storage.is_uri(address):
                storage.write_bytes_atomic(file, kept)
        self._file = None
        if not storage.is_uri(address):
            self._file = os.open(address, os.O_WRONLY | os.O_APPEND)
            weakref.finalize(self, os.close, self._file)

    def write(self, record: Record) -> None:
        """Take one record."""
        self._pending.append(json.dumps({**record, "time": round(time.time(), 3)}) + "\n")
        if time.monotonic() - self._flushed > self._patience:
            self.flush()

    def flush(self) -> None:
        """Put the records taken so far into the file; raises RunError when it cannot take them."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        with told_in_one_line(self.address, "metrics"):
            self._add("".join(self._pending).encode())
        self._pending = []

    def _add(self, data: bytes) -> None:
        if self._file is None:
            self._parts += 1
            part = storage.join(_parts(self.address), f"part-{self._parts:06}.jsonl")
            storage.write_bytes_atomic(part, data)
        else:
            while data:
                data = data[os.write(self._file, data) :]


def _parts(address: Address) -> str:
    """The directory of what was added to a log that cannot be appended to."""
    return os.fspath(address).removesuffix(".jsonl")


def _files(address: Address) -> list[str]:
    """The files of a log in the order written."""
    parts = _parts(address)
    return [os.fspath(address), *(storage.join(parts, name) for name in storage.list_files(parts))]


def _complete_lines(data: bytes) -> list[str]:
    return [line + "\n" for line in data.decode("utf-8", "replace").split("\n")[:-1]]


def _before(line: str, epoch: int, step: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    place = (record.get("epoch", -1), record.get("step", float("inf")))
    return bool(place < (epoch, step))


def read_records(address: Address) -> list[dict[str, Any]]:
    """All records of a metrics.jsonl, those in its parts too."""
    lines = (line for file in _files(address) for line in _complete_lines(storage.read_bytes(file)))
    return [json.loads(line) for line in lines]


def records_backwards(address: Address) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl, newest first; only as much is read as is asked for. Broken lines are left out."""
    for file in reversed(_files(address)):
        rest = b""
        for number, block in enumerate(storage.blocks_backwards(file)):
            whole = block if number else block[: block.rfind(b"\n") + 1]
            rest, *lines = (whole + rest).split(b"\n")
            yield from _parsed(reversed(lines))
        yield from _parsed([rest])


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):
            yield json.loads(line)


class EpochProgress:
    """Progress for people: a bar within the epoch on a terminal, and one plain line per epoch everywhere."""

    def __init__(self, epochs: int, steps: int, metric: str, stream: TextIO | None = None) -> None:
        self.epochs, self.steps, self.metric = epochs, steps, metric
        self.console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._started = time.monotonic()

    def __enter__(self) -> EpochProgress:
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps"),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("epoch 1", total=self.steps)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, record: Record) -> None:
        """Show one record of training: a step or an epoch."""
        if record["kind"] == "saved":
            return
        if record["kind"] == "epoch":
            self.console.print(epoch_line(record, self.epochs, self.metric, time.monotonic() - self._started))
        if record["kind"] == "pretraining":
            self.console.print(pretraining_line(record))
        elif self._bar is not None:
            done = record.get("step", self.steps - 1) + 1
            self._bar.update(
                self._task, completed=done, description=f"epoch {record['epoch'] + 1}/{self.epochs}"
            )


def pretraining_line(record: Record) -> str:
    """One epoch of pre-training in one line."""
    losses = "  ".join(f"{name} {value:.4f}" for name, value in record["losses"].items())
    return f"pre-training {record['epoch'] + 1:>3}  {losses}  {record['seconds']:.1f} s"


def epoch_line(record: Record, epochs: int, metric: str, elapsed: float) -> str:
    """One epoch in one line: losses (mean over modalities), validation if there was one, and times.

    Of a method in closed form: the value tried instead of losses.
    """
    losses = list(record["losses"].values())
    names = list(losses[0]) if losses else []
    tried = [f"{name} {value:g}" for name, value in record.get("tried", {}).items()]
    parts = tried + [f"{name} {sum(loss[name] for loss in losses) / len(losses):.4f}" for name in names]
    line = f"epoch {record['epoch'] + 1:>3}/{epochs}  {'  '.join(parts)}"
    if "valid" in record:
        best = record["best"]
        line += (
            f"  valid {metric} {record['valid'][metric]:.4f} (best {best[metric]:.4f}, epoch {best['epoch']})"
        )
    return line + f"  {record['seconds']:.1f} s, {elapsed:.0f} s in all"


def markdown_table(
    rows: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str],
    corner: str = "",
    *,
    best: Collection[str] = (),
) -> str:
    """Rows of metrics as a Markdown table with aligned columns, four decimals (one from 100 on).

    In the columns named by ``best`` the largest value is bold; equal ones all are.
    """
    largest = {m: max((v[m] for v in rows.values() if m in v), default=None) for m in best}
    cells = {
        name: [_cell(values.get(m), bold=m in values and values[m] == largest.get(m)) for m in metrics]
        for name, values in rows.items()
    }
    first = max([len(corner), *(len(name) for name in rows)])
    widths = [max(len(m), *(len(row[j]) for row in cells.values()), 4) for j, m in enumerate(metrics)]
    lines = [
        f"| {corner:<{first}} | "
        + " | ".join(f"{m:>{w}}" for m, w in zip(metrics, widths, strict=True))
        + " |"
    ]
    lines.append(f"|{'-' * (first + 2)}|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    for name, row in cells.items():
        shown = " | ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
        lines.append(f"| {name:<{first}} | {shown} |")
    return "\n".join(lines)


def _cell(value: float | None, *, bold: bool) -> str:
    if value is None:
        return "-"
    text = f"{value:.1f}" if abs(value) >= 100 else f"{value:.4f}"
    return f"**{text}**" if bold else text
