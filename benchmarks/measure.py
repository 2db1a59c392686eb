"""What all benchmarks share: sides measured in turns, a results file, and the closing line ``ratio: N``."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from statistics import median

import numba
import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"

Side = Callable[[], float | None]


def side_by_side(sides: Mapping[str, Side], *, rounds: int = 5, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every side in ``rounds`` rounds; each round calls all sides, every other one in reverse order.

    A side that returns a number is taken at its word (it measured itself: other units are welcome); one that returns
    None is timed as a whole. Sides alternate, so what else the machine does falls on all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-warm_up, rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            started = time.perf_counter()
            told = sides[name]()
            if number >= 0:
                found[name].append(time.perf_counter() - started if told is None else told)
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of above / below: what one round's noise does to both sides cancels."""
    return median(a / b for a, b in zip(above, below, strict=True))


def spread(values: Sequence[float]) -> str:
    """``median (least to largest)`` with three significant digits."""
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def parser(doc: str) -> argparse.ArgumentParser:
    """The options every benchmark takes; ``doc`` is the script's docstring."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--quick", action="store_true", help="a small size, under a minute; writes no results file"
    )
    made.add_argument("--rounds", type=int, default=5, help="times each side is measured [5]")
    made.add_argument("--threads", type=int, default=1, help="threads of every side [1]")
    made.add_argument(
        "--output", type=Path, help="results file [benchmarks/results/NAME.md; none with --quick]"
    )
    return made


def use_threads(count: int) -> None:
    """Give torch and numba ``count`` threads each."""
    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def commit() -> str:
    """The checkout's short commit, ``+`` behind it where files differ from it."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "..", ":!results"], cwd=HERE)
    return (found.stdout.strip() or "unknown") + ("+" if changed.returncode == 1 else "")


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def hardware() -> str:
    """Processor, cores, GPU if there is one, and the versions that decide speed."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "torch-geometric", "numba", "numpy")
    )
    return f"{processor()}, {os.cpu_count()} cores, {gpu}, Python {platform.python_version()}, {versions}"


@dataclass
class Report:
    """A results file in the making; ``name`` is the script's without ``bench_``."""

    name: str
    title: str
    options: argparse.Namespace
    lines: list[str] = field(default_factory=list)

    def say(self, line: str = "") -> None:
        """Print a line and keep it."""
        print(line, flush=True)
        self.lines.append(line)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print and keep a Markdown table, numbers to the right."""
        self.say()
        self.say("| " + " | ".join(columns) + " |")
        self.say("|---|" + "---:|" * (len(columns) - 1))
        for row in rows:
            self.say("| " + " | ".join(str(cell) for cell in row) + " |")
        self.say()

    def close(self, headline: float) -> None:
        """Write the results file and print the last line."""
        output = self.options.output or (None if self.options.quick else RESULTS / f"{self.name}.md")
        if output is not None:
            script = Path(sys.argv[0]).name
            command = shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]])
            head = [
                f"# {self.title}",
                "",
                f"`{command}`, commit {commit()}, {date.today()}.",
                f"{hardware()}.",
                "",
            ]
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(
                "\n".join([*head, *self.lines, "", f"ratio: {headline:.3g}", ""]), encoding="utf-8"
            )
            print(f"wrote {output}")
        print(f"ratio: {headline:.3g}")
