"""What a disturbed run is held to: the bits of one that was left in peace, each step once, no half-written file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gnnmr_dist.checkpoint import open_checkpoint
from gnnmr_dist.errors import RunError
from gnnmr_dist.reporting import read_records
from gnnmr_dist.runs import RunDirectory

EVERY, KEEP = 5, 2
TIMES = ("time", "seconds", "valid_seconds", "memory", "received_bytes")


def train_options(dataset: Path, output: Path, epochs: int) -> list[str]:
    """Options of the disturbed and of the undisturbed run alike."""
    where = ["--dataset", str(dataset), "--output", str(output), "--epochs", str(epochs)]
    size = ["--embedding-dim", "16", "--num-candidates", "24", "--num-neighbors", "4", "4"]
    size += ["--global-batch-size", "60", "--learning-rate", "0.01"]
    often = ["--checkpoint-every-steps", str(EVERY), "--keep-checkpoints", str(KEEP), "--valid-every", "1"]
    return [*where, *size, *often, "--patience", "1000000", "--timeout-seconds", "60"]


def undisturbed_run(home: Path, dataset: Path, epochs: int) -> Path:
    """The run directory of the same training in one process, never disturbed; made when it is not there."""
    output = home / f"undisturbed-{epochs}"
    if not (output / "model" / "manifest.json").exists():
        command = [sys.executable, "-m", "gnnmr_dist.train", *train_options(dataset, output, epochs)]
        subprocess.run([*command, "--num-workers", "0"], check=True, cwd=tempfile.gettempdir())
    return output


def check_run(output: Path, whole: Path) -> None:
    """Compare a finished run with the undisturbed one.

    Raises:
        RunError: it differs, has a step not exactly once, or left a half-written file.
    """
    ours, theirs = _records(output), _records(whole)
    places = [(r["epoch"], r.get("step")) for r in ours]
    if places != [(r["epoch"], r.get("step")) for r in theirs]:
        raise RunError(f"{output}: metrics.jsonl has other lines than the undisturbed run's")
    for mine, other in zip(ours, theirs, strict=True):
        if mine != other:
            raise RunError(f"{output}: expected {other}, got {mine}")
    files = {path.relative_to(whole) for path in whole.rglob("model/*.safetensors")}
    for name in files:
        if (output / name).read_bytes() != (whole / name).read_bytes():
            raise RunError(f"{output}: {name} is not the undisturbed run's")
    _check_files(output)


def _check_files(output: Path) -> None:
    """Whole checkpoints only, as many as are to be kept, and no draft."""
    drafts = [path for path in output.rglob("*") if path.name.endswith(".tmp")]
    if drafts:
        raise RunError(f"{output}: left over: {drafts}")
    checkpoints = RunDirectory(str(output)).checkpoints()
    for place in checkpoints:
        open_checkpoint(place)
    if len(checkpoints) != KEEP:
        raise RunError(f"{output}: expected {KEEP} checkpoints, got {checkpoints}")


def _records(output: Path) -> list[dict[str, Any]]:
    """All but how fast it was: records of several steps ("steps") begin anew wherever a run goes on."""
    records = [r for r in read_records(output / "metrics.jsonl") if r["kind"] != "steps"]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]
