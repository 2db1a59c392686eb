"""Tables in mapped files: the same bits as in memory, memory that does not grow with them, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import make_settings, planted, weights_of

from gnnmr_dist.checkpoint import Checkpoint, check_same_run
from gnnmr_dist.config import Settings
from gnnmr_dist.data import scratch
from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.data.writer import ModalityData, write_dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.errors import InputError
from gnnmr_dist.fitting import Session, check_settings, fit, open_session
from gnnmr_dist.loaded import LoadedRun, open_run
from gnnmr_dist.mapped import mapped_zeros, reader_maker, table_maker
from gnnmr_dist.reporting import MetricsLog, read_records
from gnnmr_dist.runs import OneProcessHooks, RunDirectory, run_info
from gnnmr_dist.sections import ClusterSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return planted(tmp_path_factory.mktemp("data") / "planted", num_modalities=3)


def settings_of(id_tables: str, scratch: Path, **training: Any) -> Settings:
    base = {"global_batch_size": 64, "epochs": 2, "valid_every": 1}
    return make_settings(
        sampling={"num_neighbors": [4, 4]},
        training=base | training,
        cluster={"id_tables": id_tables, "scratch": str(scratch)},
    )


def train(dataset: Dataset, home: Path, settings: Settings, start: Checkpoint | None = None) -> Session:
    """A whole run with its directory, published."""
    session = open_session(dataset, settings, one_process(len(dataset.modalities)), start)
    directory = RunDirectory(str(home))
    log = MetricsLog(directory.place("metrics.jsonl"), session.state.epoch, session.state.step)
    fit(session, OneProcessHooks(directory, log, lambda _: None, keep=9))
    log.flush()
    directory.publish_model(directory.newest()[0])
    return session


def files_of(home: Path) -> dict[str, bytes]:
    """Every tensor file of a run, by its path in the run."""
    return {str(file.relative_to(home)): file.read_bytes() for file in home.rglob("*.safetensors")}


@pytest.mark.parametrize(
    "training", [{}, {"weight_decay": 1e-3}, {"precision": "float64"}, {"checkpoint_every_steps": 2}]
)
def test_mapped_and_memory_are_the_same_bits(
    dataset: Dataset, tmp_path: Path, training: dict[str, Any]
) -> None:
    place = tmp_path / "scratch"
    place.mkdir()
    runs = {kind: tmp_path / kind for kind in ("memory", "mapped")}
    ours, theirs = (train(dataset, home, settings_of(kind, place, **training)) for kind, home in runs.items())
    assert os.listdir(place) == []
    for a, b in zip(ours.models, theirs.models, strict=True):
        for name, weight in weights_of(a).items():
            assert torch.equal(weight, weights_of(b)[name]), name
    found = {kind: files_of(home) for kind, home in runs.items()}
    assert len(found["memory"]) >= 3 * 3 * 2 + 3
    assert found["memory"] == found["mapped"]
    losses = [[r["losses"] for r in read_records(home / "metrics.jsonl")] for home in runs.values()]
    assert losses[0] == losses[1]


def test_a_run_goes_on_with_its_tables_elsewhere(dataset: Dataset, tmp_path: Path) -> None:
    whole = train(dataset, tmp_path / "whole", settings_of("memory", tmp_path))
    train(dataset, tmp_path / "cut", settings_of("memory", tmp_path, epochs=1))
    start, longer = RunDirectory(str(tmp_path / "cut")).newest()[0], settings_of("mapped", tmp_path)
    check_same_run(start, run_info(dataset, longer))
    resumed = open_session(dataset, longer, one_process(3), start)
    assert resumed.best[0]["user_input.table"].shape == (dataset.num_users, 8)
    resumed = train(dataset, tmp_path / "cut", longer, start)
    for ours, theirs in zip(resumed.models, whole.models, strict=True):
        assert all(torch.equal(w, weights_of(theirs)[name]) for name, w in weights_of(ours).items())


def vectors_of(run: LoadedRun) -> torch.Tensor:
    return run.vectors


def test_a_finished_run_is_opened_mapped_too(dataset: Dataset, tmp_path: Path) -> None:
    place = tmp_path / "scratch"
    place.mkdir()
    for kind in ("memory", "mapped"):
        home = tmp_path / kind
        session = train(dataset, home, settings_of(kind, place))
        RunDirectory(str(home)).begin(run_info(dataset, session.settings), session.settings, {})
    memory = vectors_of(open_run(tmp_path / "memory", dataset.path))
    assert torch.equal(vectors_of(open_run(tmp_path / "mapped", dataset.path)), memory)
    place.rmdir()  # on another machine
    assert torch.equal(vectors_of(open_run(tmp_path / "mapped", dataset.path)), memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32])
@pytest.mark.parametrize("size", [(), (5,), (0, 4), (3, 2, 4)])
def test_mapped_zeros(tmp_path: Path, size: tuple[int, ...], dtype: torch.dtype) -> None:
    found = mapped_zeros(str(tmp_path), size, dtype=dtype, device=CPU)
    assert torch.equal(found, torch.zeros(size, dtype=dtype))
    assert found.dtype == dtype
    found += 1
    assert found.eq(1).all()
    assert os.listdir(tmp_path) == []


def test_no_room_and_no_directory_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"scratch: expected room for 24 bytes .*nowhere, got No such file"):
        mapped_zeros(str(tmp_path / "nowhere"), (2, 3))

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch.os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match="No space left on device"):
        mapped_zeros(None, (2, 3))


def test_what_cannot_work_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scratch: expected a directory on every node, got '.*nowhere'"):
        check_settings(dataset, settings_of("mapped", tmp_path / "nowhere"))
    check_settings(dataset, settings_of("memory", tmp_path / "nowhere"))
    mapped = ClusterSettings(id_tables="mapped", scratch=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="id_tables: expected memory where the model is on a GPU"):
        table_maker(mapped, torch.device("cuda"))
    assert reader_maker(mapped, torch.device("cuda")) is torch.zeros
    assert reader_maker(mapped, CPU)((2,)).eq(0).all()
    assert table_maker(ClusterSettings(), CPU) is torch.zeros


SCRIPT = """
import json, sys, threading, time
from gnnmr_dist import evaluation, inference, row_adam
from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.fitting import fit, open_session
from gnnmr_dist.reporting import MetricsLog
from gnnmr_dist.runs import OneProcessHooks, RunDirectory

inference.ROWS_AT_ONCE = evaluation.ROWS_AT_ONCE = row_adam._ROWS_AT_ONCE = 1 << 12
evaluation.BLOCKS_AT_ONCE = 8

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def run(data, output, settings, epochs):
    directory = RunDirectory(output)
    settings = build(("test", settings), ("test", {"training": {"epochs": epochs}}))
    start = directory.newest()[0] if epochs > 1 else None
    session = open_session(open_dataset(data, verify="structure"), settings, one_process(1), start)
    log = MetricsLog(directory.place("metrics.jsonl"), session.state.epoch, session.state.step)
    fit(session, OneProcessHooks(directory, log, lambda _: None, keep=1))
    directory.publish_model(directory.newest()[0])

small, large, output, settings = sys.argv[1:]
run(small, output + "-small", json.loads(settings), 1)  # from here on all is imported and compiled, and slices are full
before, peak, done = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
try:
    run(large, output, json.loads(settings), 1)
    run(large, output, json.loads(settings), 2)  # resumed: its checkpoint is read
finally:
    done.set()
    watcher.join()
print((peak - before) / 1024)
"""


def many_users(folder: Path, num_users: int) -> Path:
    """A data set of users with one train item each, the first 100 with a valid one, and few items."""
    user = np.arange(num_users, dtype=np.int32)
    few = np.arange(100, dtype=np.int32)
    splits = {"train": (user, user % 50), "valid": (few, 50 + few % 25), "test": (few, 75 + few % 25)}
    values = np.random.default_rng(0).standard_normal((100, 4), np.float32)
    write_dataset(
        folder,
        name="many",
        users=pa.table({"id": user.astype(np.int64)}),
        items=pa.table({"id": few.astype(np.int64)}),
        splits={name: pa.table({"user": u, "item": i}) for name, (u, i) in splits.items()},
        modalities=[ModalityData("text", "dense", 4, np.ones(100, bool), values)],
        provenance={},
    )
    return folder


def growth_mebibytes(folder: Path, id_tables: str) -> float:
    """Anonymous memory that training, saving, validating and resuming on 200,000 users add to those on 20,000."""
    small, large = many_users(folder / "small", 20_000), many_users(folder / "large", 200_000)
    settings = {
        "loss": {"num_candidates": 16},
        "sampling": {"num_neighbors": [2, 2]},
        "training": {"global_batch_size": 4_000, "valid_every": 1},
        "evaluation": {"ks": [20]},
        "cluster": {"id_tables": id_tables, "scratch": str(folder)},
    }
    arguments = [str(small), str(large), str(folder / "run"), json.dumps(settings)]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc/PID/status is Linux's")
def test_anonymous_memory_does_not_grow_with_mapped_tables(tmp_path: Path) -> None:
    table = 180_000 * (12 * 64 + 4) / 2**20
    for kind in ("mapped", "memory"):
        (tmp_path / kind).mkdir()
    growth = {kind: growth_mebibytes(tmp_path / kind, kind) for kind in ("mapped", "memory")}
    assert growth["mapped"] < 0.3 * table  # seen: 13 of 133 MiB
    assert growth["memory"] > table  # seen: 473, with best weights and embeddings; or this test shows nothing
