"""What a sweep keeps so that it can go on: ``sweep.json`` says what it is, ``trials.jsonl`` has one line per trial.

Ours, in JSON, and rewritten whole and atomically at each change: Ray's own record of an experiment is pickle, which is
never read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gnnmr_dist import storage
from gnnmr_dist.errors import InputError, bad_input
from tune.space import Point

FORMAT = 1
SWEEP, TRIALS, RUNS, BEST, REPORT = "sweep.json", "trials.jsonl", "trials", "best.toml", "report.md"


@dataclass(frozen=True)
class Ended:
    """How a trial ended: ``finished`` (as `train` ends), ``stopped`` by the sweep, or ``failed`` for ``reason``.

    ``value``: its best validation value, None if it had no validation; ``best_epoch``: after how many epochs that was;
    ``epochs``: how many it trained.
    """

    status: str
    value: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep: repeat ``repeat`` of the ``point``-th point asked for. Numbers count from 0."""

    number: int
    point: int
    repeat: int
    seed: int
    values: Point
    ended: Ended | None = None

    @property
    def name(self) -> str:
        """The name of its run directory below ``trials/``."""
        return f"trial-{self.number:04d}"


@dataclass(frozen=True)
class Sweep:
    """What a sweep is; a resumed one must be the same but for ``trials`` and cluster settings.

    ``trials``: how many points at most; None = all of a grid. ``space``: the space file's content.
    """

    dataset: str
    data_digest: str
    space: Mapping[str, Any]
    space_source: str
    space_digest: str
    search: str
    trials: int | None
    seeds: int
    stopper: str
    grace: int
    reduction: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    command: list[str]


@dataclass
class Record:
    """The record of a sweep in the directory at ``address``."""

    address: str
    sweep: Sweep
    trials: list[Trial] = field(default_factory=list)

    def place(self, *parts: str) -> str:
        """The address of something in the sweep's directory."""
        return storage.join(self.address, *parts)

    def run(self, trial: Trial) -> str:
        """The address of a trial's run directory."""
        return self.place(RUNS, trial.name)

    def begin(self) -> None:
        """Write ``sweep.json`` (anew when a sweep is resumed with more trials)."""
        content = {"format": FORMAT} | asdict(self.sweep)
        storage.write_bytes_atomic(self.place(SWEEP), (json.dumps(content, indent=1) + "\n").encode())
        self._write()

    def add(self, trial: Trial) -> None:
        """Keep a trial that is about to start."""
        self.trials.append(trial)
        self._write()

    def end(self, number: int, ended: Ended) -> None:
        """Keep how a trial ended."""
        self.trials[number] = replace(self.trials[number], ended=ended)
        self._write()

    def _write(self) -> None:
        lines = "".join(json.dumps(asdict(trial)) + "\n" for trial in self.trials)
        storage.write_bytes_atomic(self.place(TRIALS), lines.encode())


def open_record(address: str) -> Record:
    """The record of an interrupted or finished sweep.

    Raises:
        InputError: there is none, or it is damaged.
    """
    place = storage.join(address, SWEEP)
    if not storage.exists(place):
        raise bad_input(address, f"the directory of a sweep ({SWEEP})", "none")
    try:
        content = json.loads(storage.read_bytes(place))
        if content.pop("format") != FORMAT:
            raise bad_input(place, f"sweep format {FORMAT}", "another")
        sweep = Sweep(**content)
        place = storage.join(address, TRIALS)
        lines = [json.loads(line) for line in storage.read_bytes(place).decode().splitlines()]
        trials = [_trial(line) for line in lines]
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise bad_input(place, "the record of a sweep", f"{type(error).__name__}: {error}") from None
    if [trial.number for trial in trials] != list(range(len(trials))):
        raise bad_input(place, "trials 0, 1, 2... in this order", "others")
    return Record(address, sweep, trials)


def _trial(line: Mapping[str, Any]) -> Trial:
    ended = line["ended"]
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in line["values"].items()}
    return Trial(**{**line, "values": values, "ended": None if ended is None else Ended(**ended)})


def require_new(address: str) -> None:
    """Refuse a place that cannot be a directory or holds something already; raises InputError."""
    storage.require_directory(address)
    if storage.list_files(address):
        raise bad_input(address, "a new or empty output directory (or --resume)", "files in it")


def require_same_data(record: Record, digest: str, path: str) -> None:
    """Refuse to go on with other data; raises InputError."""
    if record.sweep.data_digest != digest:
        expected = f"data digest {record.sweep.data_digest[:12]}..., as in {record.place(SWEEP)}"
        raise InputError(f"{path}: expected {expected}, got {digest[:12]}...")
