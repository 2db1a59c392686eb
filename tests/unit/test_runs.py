"""A run directory: what training writes, which checkpoint counts, the published model."""

from __future__ import annotations

import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_settings, planted, weights_of

from gnnmr_dist import runs
from gnnmr_dist.config import build, read_toml
from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.errors import InputError, RunError
from gnnmr_dist.fitting import Session, fit, open_session
from gnnmr_dist.reporting import MetricsLog
from gnnmr_dist.runs import Checkpoints, OneProcessHooks, RunDirectory, run_info

SETTINGS = make_settings(
    training={"global_batch_size": 64, "epochs": 3, "valid_every": 1, "learning_rate": 0.3}
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return planted(tmp_path_factory.mktemp("data") / "planted")


def train(dataset: Dataset, address: str, keep: int = 2) -> tuple[RunDirectory, Session]:
    directory = RunDirectory(address)
    session = open_session(dataset, SETTINGS, one_process(2), None)
    directory.begin(run_info(dataset, SETTINGS), SETTINGS, {"command": ["x"]})
    fit(
        session,
        OneProcessHooks(directory, MetricsLog(directory.place("metrics.jsonl")), lambda _: None, keep),
    )
    return directory, session


@pytest.fixture(scope="module")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Session]:
    directory, session = train(dataset, str(tmp_path_factory.mktemp("runs") / "run"))
    directory.publish_model(directory.newest()[0])
    return directory, session


def test_settings_and_run_json(dataset: Dataset, finished: tuple[RunDirectory, Session]) -> None:
    root = Path(finished[0].address)
    assert build(("settings.toml", read_toml(root / "settings.toml"))) == SETTINGS
    content = json.loads((root / "run.json").read_text())
    assert content["data_digest"] == dataset.digest
    assert content["modalities"] == ["text", "category"]
    assert (content["seed"], content["command"]) == (0, ["x"])
    assert content["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_only_the_newest_checkpoints_stay(finished: tuple[RunDirectory, Session]) -> None:
    names = [address.rsplit("/", 1)[-1] for address in finished[0].checkpoints()]
    assert names == ["epoch-00002-step-0000000", "epoch-00003-step-0000000"]
    assert finished[0].newest()[0].state.epoch == 3
    assert finished[0].next_attempt() == "attempt-002"


def test_the_model_is_the_best_one(finished: tuple[RunDirectory, Session]) -> None:
    directory, session = finished
    model = directory.model()
    assert model.state.best_epoch is not None
    for trained in session.models:
        loaded = model.tensors(trained.name, "weights")
        assert all(torch.equal(loaded[name], value) for name, value in weights_of(trained).items())
        assert not model.has(trained.name, "optimizer")


def test_a_damaged_model_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    directory, _ = train(dataset, str(tmp_path / "run"))
    with pytest.raises(InputError, match="a finished run"):
        directory.model()
    directory.publish_model(directory.newest()[0])
    file = tmp_path / "run" / "model" / "text.weights.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"text\.weights\.safetensors: expected"):
        directory.model()


def test_damaged_checkpoints_are_passed_over_with_a_remark(dataset: Dataset, tmp_path: Path) -> None:
    directory, _ = train(dataset, str(tmp_path / "run"))
    older, newer = directory.checkpoints()
    Path(newer, "text.optimizer.safetensors").unlink()
    checkpoint, remarks = directory.newest()
    assert checkpoint.address == older
    assert len(remarks) == 1
    assert newer in remarks[0]
    Path(older, "manifest.json").unlink()
    with pytest.raises(InputError, match="expected a complete checkpoint to resume from, got none"):
        directory.newest()


def test_an_output_directory_must_be_new(tmp_path: Path) -> None:
    RunDirectory(str(tmp_path / "new")).require_new()
    RunDirectory(str(tmp_path)).require_new()  # empty
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match="--resume"):
        RunDirectory(str(tmp_path)).require_new()
    with pytest.raises(InputError, match="got none"):
        RunDirectory(str(tmp_path)).newest()


def test_no_half_written_checkpoint_is_ever_seen(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "manifest_bytes", full_disk)
    with pytest.raises(
        RunError, match=r"epoch-00001-step-0000000: checkpoint could not be written: No space left"
    ):
        train(dataset, str(tmp_path / "run"))
    assert RunDirectory(str(tmp_path / "run")).checkpoints() == []
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_full_disk_is_told_in_one_line(dataset: Dataset, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))  # less than a checkpoint's largest file
    try:
        with pytest.raises(
            RunError, match=r"epoch-00001-step-0000000: checkpoint could not be written: .*large"
        ):
            train(dataset, str(tmp_path / "run"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert RunDirectory(str(tmp_path / "run")).checkpoints() == []


def test_a_run_directory_that_is_gone_is_not_made_anew(dataset: Dataset, tmp_path: Path) -> None:
    _, session = train(dataset, str(tmp_path / "run"))
    run = RunDirectory(str(tmp_path / "run"))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="expected a file of this run, got none any more"):
        Checkpoints(run, "attempt-002", 2).save(session)
    assert not (tmp_path / "run").exists()


def test_storage_that_does_not_answer_is_given_up(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, session = train(dataset, str(tmp_path / "run"))
    cluster = session.settings.cluster.model_copy(update={"timeout_seconds": 0.1})
    session.settings = session.settings.model_copy(update={"cluster": cluster})
    answer = threading.Event()
    monkeypatch.setattr(runs, "write_part", lambda *_: answer.wait())
    try:
        with pytest.raises(RunError, match=r"checkpoint could not be written within 0\.1 s"):
            Checkpoints(directory, "attempt-002", 2).save(session)
    finally:
        answer.set()


def test_tidying_removes_what_a_kill_left_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    directory, _ = train(dataset, str(tmp_path / "run"))
    whole = {p for p in (tmp_path / "run").rglob("*") if p.is_file()}
    half = tmp_path / "run" / "checkpoints" / "attempt-002" / "epoch-00009-step-0000001"
    half.mkdir(parents=True)
    for left in (half / "text.weights.safetensors", half / ".text.best.safetensors.0123abcd.tmp"):
        left.write_bytes(b"x")
    last = Path(directory.checkpoints()[-2])
    for place in (tmp_path / "run", last):
        (place / ".manifest.json.89abcdef.tmp").write_bytes(b"x")
    (tmp_path / "run" / ".notes.tmp").write_bytes(b"a user's")
    directory.tidy()
    found = {p for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert found == whole | {tmp_path / "run" / ".notes.tmp"}
    assert not half.exists()


def test_a_resumed_run_lets_go_of_earlier_attempts_checkpoints(dataset: Dataset, tmp_path: Path) -> None:
    directory, session = train(dataset, str(tmp_path / "run"))
    session.state.epoch += 1
    Checkpoints(directory, "attempt-002", 2).save(session)
    names = [place.split("checkpoints/")[1] for place in directory.checkpoints()]
    assert names == ["attempt-001/epoch-00003-step-0000000", "attempt-002/epoch-00004-step-0000000"]


def test_a_remote_run_directory(dataset: Dataset, tmp_path: Path) -> None:
    directory, session = train(dataset, f"file://{tmp_path}/run")
    checkpoint, remarks = directory.newest()
    assert (checkpoint.state, remarks) == (session.state, [])
    assert len(directory.checkpoints()) == 2
    directory.publish_model(checkpoint)
    assert directory.model().info.data_digest == dataset.digest
