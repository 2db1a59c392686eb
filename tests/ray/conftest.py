"""One small cluster, one data set and one undisturbed run for all tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Head, cluster, run, train_command

from gnnmr_dist.data.synthetic import synthetic_dataset


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    if sys.platform != "linux":
        pytest.skip("looks at processes through /proc")
    with cluster(4) as started:
        yield started


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "m2"
    synthetic_dataset(str(path), num_users=200, num_items=120, num_modalities=2, interactions_per_user=10)
    return path


@pytest.fixture(scope="session")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of training in one process, never interrupted."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = run(train_command(dataset, output))
    assert ended.code == 0, ended.err
    return output
