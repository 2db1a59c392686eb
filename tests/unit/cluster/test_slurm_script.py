"""The Slurm script as text: bash and shellcheck accept it, and the token is in no command line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import ROOT

SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"


@pytest.mark.parametrize(
    "checker", [["bash", "-n"], ["shellcheck", "--shell=bash"]], ids=lambda words: words[0]
)
def test_it_is_a_sound_script(checker: list[str]) -> None:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which(checker[0], path=places)
    if program is None:
        pytest.skip(f"no {checker[0]} on this machine")
    checked = subprocess.run(
        [program, *checker[1:], str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr


def test_ray_asks_for_a_token_that_nobody_sees() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in text
    assert text.index("umask 077") < text.index("mktemp") < text.index("ray start")
    assert "RAY_AUTH_TOKEN=" not in text
    assert len(re.findall(r"ray start", text)) == 2
    assert "--include-dashboard=false" in text
