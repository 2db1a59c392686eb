"""An epoch of ours against an epoch of the straightforward PyG script, and our step stage by stage.

Both train the same modalities of the same data set with the same hyper-parameters, each in a process of its own with
the same number of threads, epoch after epoch in turns. Given are the median epoch without the first (compilers and
allocators warm up), and the training seconds each needed to reach the same validation Recall@20: the best value of the
side whose best is lower. ``--dataset`` may stand several times; without it a planted data set is made.

Headline: the smallest over the data sets of PyG's epoch / ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import HERE, Report, parser, ratio, spread, use_threads
from ours_run import make_session
from paced import Trainer, in_turns, open_modalities, trainer_parser

from gnnmr_dist import fitting, training
from gnnmr_dist.distributed.mesh import Mesh

STAGES = (
    "sampling and batch",
    "features",
    "forward",
    "losses and rest",
    "exchange",
    "backward",
    "reduction",
    "optimizer",
)


class Stopwatch:
    """Seconds spent in functions of this thread, by stage; what a stage calls of another counts for the other."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.running: list[str] = []
        self.since = 0.0
        self.thread = threading.get_ident()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Replace ``owner.name`` by a function that counts its own time."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            if threading.get_ident() != self.thread:
                return inner(*given, **named)
            self._turn()
            self.running.append(stage)
            try:
                return inner(*given, **named)
            finally:
                self._turn()
                self.running.pop()

        setattr(owner, name, timed)


class Counting:
    """Hooks that count epochs and forget the first."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch, self.seconds = stopwatch, 0.0

    def record(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "epoch":
            self.seconds += record["seconds"]

    def save(self, session: fitting.Session, metrics: Mapping[str, float]) -> None:
        if session.state.epoch == 1:
            self.stopwatch.seconds.clear()
            self.seconds = 0.0


def stages(options: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Milliseconds per step by stage, and of the whole step, over all epochs but the first."""
    session, watch = make_session(options), Stopwatch()
    watch.watch(fitting, "next_step", "sampling and batch")
    watch.watch(fitting, "gather_rows", "features")
    watch.watch(fitting, "train_step", "losses and rest")
    watch.watch(training, "step_scores", "forward")
    watch.watch(torch.autograd, "backward", "backward")
    for name in dir(Mesh):
        if name.startswith(("sum_", "start_", "gather_")):
            watch.watch(Mesh, name, "reduction" if name.startswith("sum_") else "exchange")
    for model in session.models:
        watch.watch(model.optimizer, "step", "optimizer")
    hooks = Counting(watch)
    fitting.fit(session, hooks)
    steps = session.num_steps * (options.epochs - 1)
    return {stage: watch.seconds[stage] / steps * 1e3 for stage in STAGES}, hooks.seconds / steps * 1e3


def compare(path: Path, arguments: list[str], epochs: int, threads: int) -> dict[str, Trainer]:
    """Both sides on one data set."""
    given = [
        "--dataset",
        str(path),
        "--threads",
        str(threads),
        "--epochs",
        str(epochs),
        *arguments,
        "--paced",
    ]
    sides = {"ours": "ours_run.py", "PyG": "plain_pyg.py"}
    trainers = {n: Trainer(n, [sys.executable, str(HERE / s), *given], threads) for n, s in sides.items()}
    with trainers["ours"], trainers["PyG"]:
        in_turns(list(trainers.values()), dict.fromkeys(trainers, epochs))
    return trainers


def planted(directory: Path, quick: bool) -> Path:
    size = ("600", "400") if quick else ("4000", "2000")
    command = ["--synthetic", "--users", size[0], "--items", size[1], "--output", str(directory / "planted")]
    subprocess.run(
        [sys.executable, "-m", "gnnmr_dist.prepare", *command], check=True, stdout=subprocess.DEVNULL
    )
    return directory / "planted"


def one_set(path: Path, options: argparse.Namespace, arguments: list[str], report: Report) -> float:
    names = [info.name for info in open_modalities(path, None).modalities][: options.modalities]
    arguments = ["--modalities", *names, *arguments]
    epochs = 2 if options.quick else max(options.epochs, options.rounds + 1)
    found = compare(path, arguments, epochs, options.threads)
    ours, pyg = found["ours"], found["PyG"]
    value = min(max(ours.valid), max(pyg.valid))
    report.say(
        f"## {path.name}: {', '.join(names)}; {options.threads} thread(s); PyG samples with {pyg.told['sampler']}"
    )
    rows = [
        (name, spread(side.seconds[1:]), f"{max(side.valid):.4f}", f"{side.seconds_to(value):.1f}")
        for name, side in found.items()
    ]
    columns = (
        "",
        "epoch, s",
        f"best Recall@20 of {epochs} epochs",
        f"s of training to Recall@20 {value:.4f}",
    )
    report.table(columns, rows)
    settings = trainer_parser("").parse_args(
        ["--dataset", str(path), "--threads", str(options.threads), "--epochs", "3", *arguments]
    )
    parts, whole = stages(settings)
    report.say(f"Our step, {whole:.1f} ms in the calling thread (epochs 2 and 3):")
    report.table(("ms", *STAGES), [["per step", *[f"{parts[stage]:.2f}" for stage in STAGES]]])
    quotient = ratio(pyg.seconds[1:], ours.seconds[1:])
    report.say(f"PyG's epoch / ours: {quotient:.2f}")
    report.say()
    return quotient


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument(
        "--dataset", type=Path, action="append", help="data set directory; may stand several times"
    )
    made.add_argument("--modalities", type=int, default=2, help="train the first so many dense ones [2]")
    made.add_argument("--epochs", type=int, default=0, help="epochs of either side [rounds + 1]")
    options, arguments = made.parse_known_args()
    trainer_parser("").parse_args(["--dataset", "x", *arguments])  # others are refused here
    use_threads(options.threads)
    report = Report("step", "An epoch against the straightforward PyG script", options)
    with tempfile.TemporaryDirectory() as directory:
        sets = options.dataset or [planted(Path(directory), options.quick)]
        report.close(float(np.min([one_set(path, options, arguments, report) for path in sets])))


if __name__ == "__main__":
    main()
