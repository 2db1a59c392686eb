"""PMGT's stage before the loop: learns, is deterministic whatever the threads, fills the table, leaves others alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import make_settings, planted

from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.fitting import open_session
from gnnmr_dist.members import members_of
from gnnmr_dist.models.pmgt import PMGT
from gnnmr_dist.pretraining import pretrain, pretrain_session
from gnnmr_dist.training import ModalityModel, build_model


def model_of(dataset: Dataset, method: str = "pmgt", **pretraining: Any) -> tuple[ModalityModel, Any]:
    settings = make_settings(
        model={"method": method, "members": ["all"]}, sampling={"num_neighbors": []}, pretraining=pretraining
    )
    (member,) = members_of(dataset, settings.model)
    shape = (dataset.num_users, dataset.num_items)
    return build_model(0, member, shape, settings, torch.device("cpu")), settings


def run(dataset: Dataset, model: ModalityModel, settings: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    tables = [dataset.features(info.name) for info in model.member.modalities]
    pretrain(model.encoder, dataset.graph, tables, settings, one_process(1), records.append)
    return records


def test_both_losses_fall_and_every_weight_moves(tmp_path: Path) -> None:
    dataset = planted(tmp_path / "d", 3, missing=0.3)
    model, settings = model_of(dataset, pretrain_epochs=60, pretrain_learning_rate=0.01)
    assert isinstance(model.encoder, PMGT)
    before = {k: v.detach().clone() for k, v in model.encoder.named_parameters()}
    records = run(dataset, model, settings)
    assert [r["epoch"] for r in records] == list(range(60))
    for name in ("neighbours", "features"):
        course = [r["losses"][name] for r in records]
        assert sum(course[-10:]) < 0.97 * sum(course[:10])
    after = dict(model.encoder.named_parameters())
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert same == {"user_input.table", "map.weight"}
    assert not any(p.requires_grad for p in model.encoder.transformer.parameters())


def test_the_same_bits_whatever_the_threads_and_the_global_generator(tmp_path: Path) -> None:
    dataset, found, threads = planted(tmp_path / "d", 2), [], torch.get_num_threads()
    for number in (1, 2):
        torch.manual_seed(number)
        torch.set_num_threads(number)
        try:
            model, settings = model_of(dataset, pretrain_epochs=2)
            run(dataset, model, settings)
        finally:
            torch.set_num_threads(threads)
        assert isinstance(model.encoder, PMGT)
        found.append(model.encoder.vectors.detach().clone())
    assert torch.equal(*found)


def test_a_run_that_goes_on_does_not_start_again(tmp_path: Path) -> None:
    dataset = planted(tmp_path / "d", 2)
    _, settings = model_of(dataset, pretrain_epochs=1)
    session = open_session(dataset, settings, one_process(1), None)
    records: list[dict[str, Any]] = []
    session.state.step = 1
    pretrain_session(session, records.append)
    assert records == []
    session.state.step = 0
    pretrain_session(session, records.append)
    assert [r["kind"] for r in records] == ["pretraining"]


def test_frozen_vectors_have_no_optimizer(tmp_path: Path) -> None:
    model, _ = model_of(planted(tmp_path / "d", 2), freeze_items=True)
    assert set(model.optimizer.table_parameters) == {"user_input.table"}
    assert set(model.optimizer.dense_parameters) == {"map.weight"}


def test_other_methods_have_no_such_stage(tmp_path: Path) -> None:
    dataset = planted(tmp_path / "d", 2)
    model, settings = model_of(dataset, "bpr-mf")
    before = {k: v.detach().clone() for k, v in model.encoder.named_parameters()}
    assert run(dataset, model, settings) == []
    assert all(torch.equal(before[k], p) for k, p in model.encoder.named_parameters())
