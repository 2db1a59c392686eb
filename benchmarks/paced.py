"""Trainers in processes of their own that compute one epoch when asked, so that several can be measured in turns.

A trainer prints one JSON object per epoch, ``{"epoch", "seconds", "valid"}``: seconds of training without validation,
and validation Recall@20. With ``--paced`` it waits for a line on its input before every epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gnnmr_dist.data.dataset import Dataset, open_dataset


def trainer_parser(doc: str) -> argparse.ArgumentParser:
    """The options of a trainer written here: the hyper-parameters both sides of a comparison share."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dataset", type=Path, required=True, help="data set made by gnnmr_dist.prepare")
    made.add_argument("--modalities", nargs="+", help="dense modalities to train [all of them]")
    made.add_argument("--epochs", type=int, default=10)
    made.add_argument("--batch-size", type=int, default=1024, help="positives per step")
    made.add_argument("--dim", type=int, default=64, help="embedding size")
    made.add_argument("--fan-out", type=int, nargs="+", default=[20, 20], help="neighbours per hop")
    made.add_argument("--candidates", type=int, default=256, help="items every row is ranked against")
    made.add_argument("--learning-rate", type=float, default=2e-3)
    made.add_argument("--temperature", type=float, default=0.15)
    made.add_argument("--distill-weight", type=float, default=0.5)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--paced", action="store_true", help="wait for a line of input before every epoch")
    return made


def open_modalities(path: Path, names: Sequence[str] | None) -> Dataset:
    """The data set with the dense modalities ``names`` only; None = all dense ones."""
    dataset = open_dataset(path)
    dense = [info for info in dataset.modalities if info.kind == "dense"]
    dataset.modalities = tuple(dense if names is None else [dataset.modality(name) for name in names])
    return dataset


def wait_for_word(paced: bool) -> None:
    """Wait for the word to go on; end when nobody is there to give it."""
    if paced and not sys.stdin.readline():
        raise SystemExit(0)


def tell(epoch: int, seconds: float, valid: float, **notes: object) -> None:
    """Print one epoch's figures."""
    print(json.dumps({"epoch": epoch, "seconds": seconds, "valid": valid, **notes}), flush=True)


@dataclass
class Trainer:
    """One process; ``seconds`` and ``valid`` hold what it told so far, one entry per epoch."""

    name: str
    command: Sequence[str]
    threads: int
    directory: Path | None = None
    seconds: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    process: Any = None

    def __enter__(self) -> Trainer:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=os.environ | dict.fromkeys(names, str(self.threads)),
            start_new_session=True,  # with whatever it starts
        )
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def epoch(self) -> None:
        """One more epoch; raises RuntimeError when the process ends instead."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                self.told = json.loads(line)
                self.seconds.append(self.told["seconds"])
                self.valid.append(self.told["valid"])
                return
        raise RuntimeError(f"{self.name} ended with code {self.process.wait()} before its epoch was over")

    def seconds_to(self, value: float) -> float | None:
        """Training seconds until validation first reached ``value``; None if it never did."""
        passed = 0.0
        for seconds, valid in zip(self.seconds, self.valid, strict=True):
            passed += seconds
            if valid >= value:
                return passed
        return None


def in_turns(trainers: Sequence[Trainer], epochs: Mapping[str, int]) -> None:
    """Epoch after epoch, all trainers in turns, until each has computed ``epochs[name]`` of them."""
    for number in range(max(epochs.values())):
        for trainer in trainers if number % 2 == 0 else reversed(trainers):
            if number < epochs[trainer.name]:
                trainer.epoch()
