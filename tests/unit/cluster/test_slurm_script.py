"""The Slurm script as text: bash and shellcheck accept it, and the token is in no command line."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from manifests import ROOT

SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"


@pytest.mark.parametrize(
    "checker", [["bash", "-n"], ["shellcheck", "--shell=bash"]], ids=lambda words: words[0]
)
def test_it_is_a_sound_script(checker: list[str]) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"no {checker[0]} on this machine")
    checked = subprocess.run([*checker, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr


def test_ray_asks_for_a_token_that_nobody_sees() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in text
    assert text.index("umask 077") < text.index("mktemp") < text.index("ray start")
    assert "RAY_AUTH_TOKEN=" not in text
    assert len(re.findall(r"ray start", text)) == 2
    assert "--include-dashboard=false" in text
