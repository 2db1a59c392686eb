"""SIGKILL in the middle of writing checkpoints, again and again: what is resumed is always whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import kill, losses, model_bytes, run, started, steps, train_command, wait_for

pytestmark = pytest.mark.timeout(600)
KILLS = 4


@pytest.mark.slow  # a kill at any other moment: test_training_on_ray.py
def test_a_half_written_checkpoint_is_never_taken(dataset: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    every_step = ["--checkpoint-every-steps", "1"]
    left_behind = 0
    for number in range(KILLS):
        resume, last = ["--resume"] if number else [], _newest_attempt(output)
        with started(train_command(dataset, output, *every_step, *resume)) as process:
            wait_for(lambda old=last: _newest_attempt(output) > old, process)
            wait_for(lambda: bool(_half_written(output)), process, pause=0)
            kill(process)
        left_behind += bool(_half_written(output))
    assert left_behind > 0  # at least one kill did hit a checkpoint that was being written
    ended = run(train_command(dataset, output, *every_step, "--resume"))
    assert ended.code == 0, ended.err
    assert steps(output) == steps(undisturbed)
    assert losses(output) == losses(undisturbed)
    assert model_bytes(output) == model_bytes(undisturbed)


def _newest_attempt(output: Path) -> str:
    """Of those that have a complete checkpoint."""
    return max(
        (place.parent.parent.name for place in output.glob("checkpoints/*/epoch-*/manifest.json")), default=""
    )


def _half_written(output: Path) -> list[Path]:
    """Checkpoints without the file that is written last."""
    places = output.glob("checkpoints/*/epoch-*")
    return [place for place in places if not (place / "manifest.json").exists()]
