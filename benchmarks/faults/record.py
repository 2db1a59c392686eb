"""The record of a campaign: one JSON line per kill and per finished run; and its report."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from measure import commit, hardware

NAMES = {
    "worker": "a Ray Train worker",
    "raylet": "the raylet of a worker's node",
    "command": "the command (driver)",
    "controller": "Ray Train's controller",
}


class Kills:
    """Lines of a JSON-lines file: kills, and which runs ended as the undisturbed one did."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: list[dict[str, Any]] = []
        self.runs: list[str] = []
        self._last = 0
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        self._last = max(self._last, int(record["run"].removeprefix("run-")))
        if "kind" in record:
            self.done.append(record)
        else:
            self.runs.append(record["run"])

    def add(self, kill: dict[str, Any]) -> None:
        """Keep a kill."""
        self._write(kill | {"number": len(self.done), "commit": commit()})
        print(f"{len(self.done):>4} {kill['kind']:<10} {kill['seconds']:7.1f} s  {kill}", flush=True)

    def end_run(self, name: str) -> None:
        """Keep that a run ended as it must."""
        self._write({"run": name, "equal": True})

    def next_run(self) -> str:
        """A name that no run has had: a run that a cut-off campaign left is not gone on with."""
        taken = [
            int(place.name[4:7]) for place in self.path.parent.glob("run-*") if place.name[4:7].isdigit()
        ]
        return f"run-{max([self._last, *taken]) + 1:03}"

    def _write(self, record: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._take(record)


def report(kills: Kills) -> list[str]:
    """The results file: what was killed, how often the run recovered, and how soon."""
    given = _given(sys.argv[1:])
    command = shlex.join(["python", "benchmarks/kill_campaign.py", "--directory", "DIR", *given])
    commits = Counter(kill["commit"] for kill in kills.done)
    parts = ", ".join(f"{name} ({count} kills)" for name, count in commits.items())
    lines = ["# Kills", "", f"`{command}`, commit {parts}, {date.today()}.", f"{hardware()}.", ""]
    lines += [
        "Three nodes of one machine, two Ray Train workers, planted data, a checkpoint every 5 steps",
        "(docs/distributed.md says what each kill is). Kills come in bursts of one to three, each before the run has",
        "recovered from the one before. Seconds: from the last kill of a burst to a whole checkpoint by new workers.",
        "",
        "| killed | kills | while a checkpoint was written | recovered | median s | most s |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind in [*NAMES, ""]:
        rows = [kill for kill in kills.done if kind in ("", kill["kind"])]
        lines += [_row(NAMES.get(kind, "all"), rows)] if rows else []
    lost = [kill for kill in kills.done if not kill["recovered"]]
    runs = len({kill["run"] for kill in kills.done})
    lines += [
        "",
        f"{runs} runs were disturbed; {len(set(kills.runs))} were followed to their end, and each of these",
    ]
    lines += [
        "equals the undisturbed run in every loss, validation and byte of the model, has every step once, and left"
    ]
    lines += ["no half-written file."]
    lines += ["", f"kills: {len(kills.done)}, not recovered: {len(lost)}"]
    return lines


def _row(name: str, rows: Sequence[dict[str, Any]]) -> str:
    seconds = [kill["seconds"] for kill in rows if not kill["overtaken"]]
    hit, well = sum(kill["half_written"] for kill in rows), sum(kill["recovered"] for kill in rows)
    times = f"{median(seconds):.1f} | {max(seconds):.1f}" if seconds else "- | -"
    return f"| {name} | {len(rows)} | {hit} | {well} | {times} |"


def _given(words: Sequence[str]) -> list[str]:
    """The command line without places of this machine."""
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in ("--directory", "--output"):
            skip = True
        else:
            kept.append(word)
    return kept
