"""Popularity, item-kNN and EASE as methods: the harness of all others, and the numbers of their comparison rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import planted

import gnnmr_dist as gnnmr
from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.closed_form import choose, value_on
from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import Dataset, Interactions
from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.ease import BaselineSkipped
from gnnmr_dist.errors import InputError, Stopped
from gnnmr_dist.evaluation import relevant_items
from gnnmr_dist.fitting import Session
from gnnmr_dist.notice import Notice, Wish
from gnnmr_dist.recommend import main as recommend
from gnnmr_dist.runs import OneProcessHooks, RunDirectory
from gnnmr_dist.train import main, train


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return planted(tmp_path_factory.mktemp("closed") / "d", 2, num_users=60, cold_users=4)


@pytest.fixture(scope="module")
def runs(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, gnnmr.Run]:
    """A run of every method in closed form, and one of a network."""
    home = tmp_path_factory.mktemp("closed")
    made = {name: gnnmr.fit(dataset, home / name, method=name) for name in CLOSED_FORM}
    return made | {"bpr-mf": gnnmr.fit(dataset, home / "bpr-mf", method="bpr-mf", epochs=1, embedding_dim=4)}


def records(run: gnnmr.Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run.path) / "metrics.jsonl").read_text().splitlines()]


def test_the_numbers_are_those_of_the_comparison_row_whoever_is_compared(runs: dict[str, gnnmr.Run]) -> None:
    for split in ("valid", "test"):
        rows = runs["bpr-mf"].evaluate(split)
        assert list(rows) == ["bpr-mf", *CLOSED_FORM]
        assert len({rows[name]["NDCG@20"] for name in CLOSED_FORM}) == len(CLOSED_FORM)
        for name in CLOSED_FORM:
            found = runs[name].evaluate(split)
            assert list(found) == [name, *(other for other in CLOSED_FORM if other != name)]
            assert found == {row: rows[row] for row in found}


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_a_record_per_value_and_the_best_on_validation_is_kept(runs: dict[str, gnnmr.Run], name: str) -> None:
    run, method = runs[name], CLOSED_FORM[name]
    tried = records(run)
    assert [(record["kind"], record["epoch"]) for record in tried] == [
        ("epoch", n) for n in range(len(tried))
    ]
    assert [record["tried"] for record in tried] == [method.named(value) for value in method.values]
    reached = [record["valid"]["Recall@20"] for record in tried]
    assert tried[-1]["best"] == {"epoch": 1 + int(np.argmax(reached)), "Recall@20": max(reached)}
    assert run.evaluate("valid", baselines=False)[name]["Recall@20"] == max(reached)
    files = {file.name for file in (Path(run.path) / "model").iterdir()}
    assert files == {f"{name}.weights.safetensors", "manifest.json"}
    assert run.metrics_history() == tried


def test_what_is_tried_matters(runs: dict[str, gnnmr.Run]) -> None:
    for name in ("item-knn", "ease"):
        assert len({record["valid"]["NDCG@20"] for record in records(runs[name])}) > 2


def test_lists_are_the_best_by_the_scores_of_the_chosen_value(
    runs: dict[str, gnnmr.Run], dataset: Dataset
) -> None:
    best = records(runs["ease"])[-1]["best"]["epoch"]
    scorer = CLOSED_FORM["ease"].fit(dataset.graph, CLOSED_FORM["ease"].values[best - 1])
    assert not isinstance(scorer, BaselineSkipped)
    scores = scorer.scores(np.array([7])).numpy()[0]
    order = np.lexsort((np.arange(scores.size), -scores))[:5]
    table = runs["ease"].recommend([f"u{7}"], k=5, include_seen=True)
    assert table["item"].to_pylist() == [f"i{item}" for item in order]
    np.testing.assert_array_equal(table["score"].to_numpy(), scores[order])


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_with_the_values_that_are_left(
    runs: dict[str, gnnmr.Run], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, fitted = OneProcessHooks.save, []

    def killed(self: OneProcessHooks, session: Session, metrics: Mapping[str, float]) -> None:
        save(self, session, metrics)
        if session.state.epoch == 2:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(OneProcessHooks, "save", killed)
        with pytest.raises(KilledError):
            train(dataset, str(tmp_path / "run"), build(("test", {"model": {"method": "item-knn"}})))
    method = CLOSED_FORM["item-knn"]
    counted = replace(method, fit=lambda graph, value: fitted.append(value) or method.fit(graph, value))
    monkeypatch.setitem(CLOSED_FORM, "item-knn", counted)
    options = ["--dataset", dataset.path, "--output", str(tmp_path / "run"), "--resume"]
    assert main(options) == 0
    assert tuple(fitted) == method.values[2:]
    again = records(gnnmr.load_run(tmp_path / "run"))
    assert [record["valid"] for record in again] == [record["valid"] for record in records(runs["item-knn"])]
    assert main([*options, "--epochs", "200"]) == 0  # nothing is left to try
    assert tuple(fitted) == method.values[2:]
    kept, expected = (RunDirectory(path).model() for path in (str(tmp_path / "run"), runs["item-knn"].path))
    assert kept.files == expected.files


def test_a_wish_to_end_is_heeded_after_the_value_and_resumed(
    runs: dict[str, gnnmr.Run], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(Notice, "heard", lambda _: Wish.END)
        with pytest.raises(Stopped, match=r"^asked to end after value 1; state saved; python -m .* goes on$"):
            train(dataset, output, build(("test", {"model": {"method": "ease"}})))
    assert RunDirectory(output).status()["status"] == "interrupted"
    assert main(["--dataset", dataset.path, "--output", output, "--resume"]) == 0
    kept, expected = (RunDirectory(path).model() for path in (output, runs["ease"].path))
    assert kept.files == expected.files


def test_settings_of_networks_change_nothing(
    runs: dict[str, gnnmr.Run], dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--members", "each", "--epochs", "1", "--linear-peer", "--embedding-dim", "4", "--seed", "9"]
    where = ["--dataset", dataset.path, "--output", str(tmp_path / "run")]
    assert main([*where, "--method", "ease", *options]) == 0
    told = capsys.readouterr().out
    assert "ease on this process" in told
    assert "epoch   1/8  l2 10  valid Recall@20 " in told
    assert "\nease: l2 = " in told
    other = gnnmr.load_run(tmp_path / "run")
    assert other.rows == ["ease"]
    assert other.evaluate("test", baselines=False) == runs["ease"].evaluate("test", baselines=False)


def test_what_it_cannot_do_is_one_line(
    runs: dict[str, gnnmr.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="embeddings: expected a run of networks, got one of ease"):
        runs["ease"].embeddings()
    pq.write_table(gnnmr_items(), tmp_path / "new.parquet")
    common = ["--run", runs["ease"].path, "--users", "u7"]
    for options, message in (
        (["--row", "concatenation"], "row: expected one of ease, got 'concatenation'"),
        (["--new-items", str(tmp_path / "new.parquet")], "new items: expected a run of networks"),
        (["--approximate"], "--approximate: expected a row that has embeddings"),
    ):
        assert recommend([*common, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def gnnmr_items() -> Any:
    import pyarrow as pa

    return pa.table({"id": ["new"]})


def test_a_user_without_train_interactions_is_told_of(
    runs: dict[str, gnnmr.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    assert recommend(["--run", runs["ease"].path, "--users", "u0", "--k", "3"]) == 0
    assert "1 of 1 users have no train interactions: they get popularity" in capsys.readouterr().err


def test_too_large_is_refused_before_anything_is_written(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ease = CLOSED_FORM["ease"]
    assert ease.skipped(dataset.graph) is None
    small = replace(ease, too_large=lambda graph, limit: ease.skipped(graph, 1))
    monkeypatch.setitem(CLOSED_FORM, "ease", small)
    where = ["--dataset", dataset.path, "--output", str(tmp_path / "run")]
    assert main([*where, "--method", "ease"]) == 2
    assert "method: expected one that fits in memory, got EASE skipped: a 60 x 60" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*where, "--method", "popularity"]) == 0


def test_choose_takes_the_best_on_validation_and_of_equals_the_first() -> None:
    rng = np.random.default_rng(5)
    taste = np.kron(np.eye(4), np.ones((15, 12)))
    matrix = (rng.random(taste.shape) < 0.05 + 0.5 * taste).astype(np.float64)
    held_out = (matrix > 0) & (rng.random(matrix.shape) < 0.3)
    graph = build_graph(*np.nonzero(matrix * ~held_out), *matrix.shape)
    valid = relevant_items(Interactions(*(a.astype(np.int32) for a in np.nonzero(held_out))), 60)
    values: dict[float, float] = {}
    for value in (grid := (0.001, 1.0, 1e5)):
        scorer = CLOSED_FORM["ease"].fit(graph, value)
        assert not isinstance(scorer, BaselineSkipped)
        values[value] = value_on(valid, scorer, graph, "Recall@20")
    assert len(set(values.values())) == 3
    chosen = choose("ease", graph, valid, grid)
    assert not isinstance(chosen, BaselineSkipped)
    assert chosen[1] == max(values, key=lambda value: values[value])
    equal = choose("item-knn", graph, valid, (48.0, -1.0))  # 48 items: all of them, twice
    assert not isinstance(equal, BaselineSkipped)
    assert equal[1] == 48
    for bad in ((), (0.0,)):
        with pytest.raises(ValueError, match=r"empty|positive"):
            choose("ease", graph, valid, bad)
    skipped = choose("ease", graph, valid, memory_limit=0)
    assert isinstance(skipped, BaselineSkipped)
    assert "48 x 48" in skipped.reason


def test_values_in_words() -> None:
    assert [CLOSED_FORM["item-knn"].text(value) for value in (20.0, -1.0)] == [
        "neighbours = 20",
        "neighbours = all",
    ]
    assert CLOSED_FORM["ease"].text(0.5) == "l2 = 0.5"
    assert CLOSED_FORM["popularity"].text(0.0) == ""
    assert torch.tensor(CLOSED_FORM["ease"].values).tolist() == list(
        CLOSED_FORM["ease"].values
    )  # exact in float32
