"""What `ray job submit` would upload: Ray's own packaging, run on a project full of things to leave behind."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from manifests import ROOT
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.validation import parse_and_validate_excludes, parse_and_validate_working_dir

FILE = ROOT / "cluster" / "runtime_env.yaml"
LEFT_BEHIND = [
    ".env",
    ".git/config",
    ".venv/lib/x.py",
    "auth_token",
    "data/shop/train.parquet",
    "demo/run/model/text.safetensors",
    "docs/x.md",
    "embeddings.npy",
    "gnnmr_dist/__pycache__/x.cpython-311.pyc",
    "gnnmr_dist/data/__pycache__/x.nbc",
    "runs/shop/metrics.jsonl",
    "tests/unit/test_x.py",
    "whatever/else.bin",
]
TAKEN = [
    "cluster/local.py",
    "gnnmr_dist/data/graph.py",
    "gnnmr_dist/train.py",
    "pyproject.toml",
    "shop.toml",
    "tune/x.py",
]


def packed(project: Path, excludes: list[str], target: Path) -> list[str]:
    """Files of the package that Ray would upload, its default excludes in force."""
    excludes = get_runtime_env_default_excludes() + (parse_and_validate_excludes(excludes) or [])
    create_package(
        str(project), target, include_gitignore=True, excludes=excludes, logger=logging.getLogger("test")
    )
    with ZipFile(target) as package:
        return sorted(name for name in package.namelist() if not name.endswith("/"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in (*LEFT_BEHIND, *TAKEN):
        file = tmp_path / "project" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "project"


def test_code_and_settings_travel_and_nothing_else(project: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert set(settings) == {"working_dir", "excludes"}
    assert settings["working_dir"] == "."
    assert packed(project, settings["excludes"], tmp_path / "a.zip") == TAKEN
    assert packed(project, [], tmp_path / "b.zip") != TAKEN  # the excludes are what does it
    parse_and_validate_working_dir(str(project))


def test_the_package_of_this_repository_is_small_and_whole(tmp_path: Path) -> None:
    excludes = yaml.safe_load(FILE.read_text(encoding="utf-8"))["excludes"]
    names = packed(ROOT, excludes, tmp_path / "a.zip")
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / "gnnmr_dist").rglob("*.py")}
    assert wanted <= set(names)
    assert (tmp_path / "a.zip").stat().st_size < 2_000_000


def test_without_the_directory_itself_nothing_would_be_uploaded(project: Path, tmp_path: Path) -> None:
    excludes = yaml.safe_load(FILE.read_text(encoding="utf-8"))["excludes"]
    excludes.remove("!/.")
    assert packed(project, excludes, tmp_path / "a.zip") == []
    shutil.rmtree(project)
