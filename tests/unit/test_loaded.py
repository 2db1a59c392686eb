from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.synthetic import synthetic_dataset
from gnnmr_dist.distributed.mesh import Mesh
from gnnmr_dist.errors import InputError
from gnnmr_dist.evaluation import evaluate, relevant_items
from gnnmr_dist.loaded import LoadedRun, Protocol, check_protocol, open_run
from gnnmr_dist.ranking import Int64Array, train_counts


def test_vectors_are_unit_length_for_every_modality_and_node(loaded: LoadedRun) -> None:
    assert loaded.vectors.shape == (5, 130, 16)
    torch.testing.assert_close(loaded.vectors.norm(dim=2), torch.ones(5, 130))


def test_concatenation_is_the_weighted_sum_of_the_modalities_scores(loaded: LoadedRun) -> None:
    users = np.arange(60)
    offset = torch.from_numpy(train_counts(loaded.dataset.graph) * 1e-6).float()
    each = torch.stack([loaded.scorer(name).scores(users) - offset for name in loaded.names])
    present = loaded.present
    assert present is not None
    assert not bool(present.all())
    used = (present | ~present.any(dim=0)).float()
    expected = (each * used[:, None]).sum(dim=0) * 5 / used.sum(dim=0) + offset
    torch.testing.assert_close(loaded.scorer("concatenation").scores(users), expected, rtol=1e-5, atol=1e-5)


def test_the_weights_are_those_of_the_best_epoch(loaded: LoadedRun) -> None:
    """What is loaded reaches on validation exactly what training reported for its best epoch."""
    graph = loaded.dataset.graph
    relevant = relevant_items(loaded.dataset.interactions("valid"), 60)
    found = evaluate(loaded.scorer("concatenation"), graph, relevant, [20], loaded.mesh)
    assert found.means["Recall@20"] == loaded.model.state.best_value


@dataclass
class BlockSpy:
    """A scorer that keeps the blocks of users it is asked for."""

    blocks: list[list[int]] = field(default_factory=list)

    def scores(self, users: Int64Array) -> Tensor:
        self.blocks.append(users.tolist())
        return torch.rand(users.size, 70)


class LonelyMesh(Mesh):
    """One rank of many whose collectives bring nothing from others."""

    def gather_world(self, own: Tensor) -> list[Tensor]:
        return [own]

    def sum_world(self, t: Tensor) -> None:
        del t


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_any_number_of_workers_ranks_the_same_blocks_of_users(
    loaded: LoadedRun, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnnmr_dist.ranking.USERS_PER_BLOCK", 8)
    relevant = relevant_items(loaded.dataset.interactions("valid"), 60)
    spy = BlockSpy()
    for rank in range(world):
        mesh = LonelyMesh(rank, world, 5, 1, torch.device("cpu"))
        evaluate(spy, loaded.dataset.graph, relevant, [5], mesh)
    users = relevant.users.tolist()
    assert spy.blocks == [users[start : start + 8] for start in range(0, len(users), 8)]


def copy(planted: Path, target: Path) -> Path:
    shutil.copytree(planted, target)
    return target


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-run: expected a run directory, got nothing there"):
        open_run(tmp_path / "no-run")


def test_a_run_that_has_not_finished(planted: Path, tmp_path: Path) -> None:
    run = copy(planted, tmp_path / "run")
    shutil.rmtree(run / "model")
    with pytest.raises(InputError, match="expected a finished run"):
        open_run(run)


def test_damaged_weights(planted: Path, tmp_path: Path) -> None:
    run = copy(planted, tmp_path / "run")
    file = run / "model" / "text.weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"text.weights.safetensors: expected SHA-256"):
        open_run(run)


def test_other_data_are_refused(planted: Path, tmp_path: Path) -> None:
    synthetic_dataset(tmp_path / "other", num_users=60, num_items=70, interactions_per_user=10, seed=1)
    digest = json.loads((planted.parent / "data" / "manifest.json").read_text())["digest"]
    with pytest.raises(InputError, match=rf"digest {digest[:12]}\.\.\., got [0-9a-f]{{12}}\.\.\."):
        open_run(planted, tmp_path / "other")


def test_a_data_set_that_moved(planted: Path, tmp_path: Path) -> None:
    home = copy(planted.parent, tmp_path / "home")
    data = home / "data"
    moved = open_run(home / "run", data)
    assert moved.dataset.path == str(data)


def test_a_data_set_that_is_gone_says_what_to_do(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str, **_: object) -> None:
        raise InputError(f"{path}: expected a directory, got nothing there")

    monkeypatch.setattr("gnnmr_dist.loaded.open_dataset", gone)
    with pytest.raises(InputError, match="--dataset names another place"):
        open_run(planted)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Protocol("train", (5,)), "split: expected valid or test, got 'train'"),
        (Protocol("valid", (5,), True), "mask_valid: expected split test, got valid"),
        (Protocol("test", (0,)), r"ks: expected cut-offs in 1..70 \(the number of items\), got 0"),
        (Protocol("test", (71,)), r"ks: expected cut-offs in 1..70 \(the number of items\), got 71"),
        (Protocol("test", (5, 5)), r"ks: expected different cut-offs, got \[5, 5\]"),
        (Protocol("test", ()), "ks: expected different cut-offs"),
        (Protocol("test", (5,), among="warm"), "among: expected all or cold, got 'warm'"),
    ],
)
def test_protocols_that_cannot_work(loaded: LoadedRun, protocol: Protocol, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_protocol(loaded.dataset, protocol)


def test_cold_items_must_be_there(tmp_path: Path) -> None:
    synthetic_dataset(
        tmp_path / "warm", num_users=400, num_items=64, interactions_per_user=16, cold_items=0, cold_users=0
    )
    with pytest.raises(
        InputError, match="among: expected test interactions with items that have none in train"
    ):
        check_protocol(open_dataset(tmp_path / "warm"), Protocol("test", (5,), among="cold"))


def test_an_unknown_row(loaded: LoadedRun) -> None:
    with pytest.raises(
        InputError,
        match=r"row: expected one of text, image, .*aligned-average, linear-peer, fused, got 'smell'",
    ):
        loaded.scorer("smell")
