from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gnnmr_dist
from gnnmr_dist.__main__ import VERBS, main
from gnnmr_dist.errors import InputError
from gnnmr_dist.loaded import LoadedRun


@pytest.fixture(scope="module")
def run(planted: Path) -> gnnmr_dist.Run:
    return gnnmr_dist.load_run(planted)


@pytest.mark.parametrize("module", ["gnnmr_dist", "gnnmr_dist.__main__"])
def test_importing_the_package_loads_neither_torch_nor_ray(module: str) -> None:
    code = (
        f"import {module}, sys; print([m for m in ('torch', 'ray', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_of_the_one_command_runs(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--no-such-option"]) == 2
    assert f"gnnmr_dist.{verb}" in capsys.readouterr().err


def test_the_package_has_the_api_and_nothing_made_up() -> None:
    assert {"open_dataset", "fit", "load_run", "Run"} <= set(dir(gnnmr_dist))
    with pytest.raises(AttributeError, match="no attribute 'recommend_all'"):
        _ = gnnmr_dist.recommend_all


def test_fit_takes_sections_and_single_settings(planted: Path, tmp_path: Path) -> None:
    data = gnnmr_dist.open_dataset(planted.parent / "data")
    settings = {"model": {"embedding_dim": 8}, "training": {"epochs": 3, "global_batch_size": 256}}
    run = gnnmr_dist.fit(data, tmp_path / "run", settings, epochs=1, valid_every=1, num_workers=0)
    assert (run.settings.model.embedding_dim, run.settings.training.epochs) == (8, 1)
    assert [record["epoch"] for record in run.metrics_history()] == [0]
    assert run.path == str(tmp_path / "run")


def test_fit_refuses_what_is_no_setting(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fit: expected settings among .*, got 'epoch'"):
        gnnmr_dist.fit(planted.parent / "data", tmp_path / "run", epoch=1)
    with pytest.raises(InputError, match=r"fit, key training\.epochs: .* got 0"):
        gnnmr_dist.fit(planted.parent / "data", tmp_path / "run", epochs=0)
    assert not (tmp_path / "run").exists()


def test_recommend_gives_a_table_of_original_ids(run: gnnmr_dist.Run) -> None:
    table = run.recommend(["u9", "u4"], k=3, row="text")
    assert table.column_names == ["user", "rank", "item", "title", "score", "cold"]
    assert table["user"].to_pylist() == ["u9"] * 3 + ["u4"] * 3
    assert table["rank"].to_pylist() == [1, 2, 3] * 2


def test_evaluate_gives_rows_of_metrics(run: gnnmr_dist.Run) -> None:
    found = run.evaluate("valid", ks=[20], baselines=False)
    assert list(found) == run.rows
    assert found["concatenation"]["Recall@20"] == max(
        record["valid"]["Recall@20"] for record in run.metrics_history() if "valid" in record
    )
    with pytest.raises(InputError, match="cut-offs"):
        run.evaluate("valid", ks=[])


def test_embeddings_multiply_to_the_scores(run: gnnmr_dist.Run, loaded: LoadedRun) -> None:
    for row, width in (("image", 16), ("concatenation", 80), ("average", 16)):
        users, items = run.embeddings(row)
        assert users.shape == (60, width)
        assert items.shape == (70, width)
        popularity = loaded.dataset.graph.degree()[60:] * 1e-6
        expected = loaded.scorer(row).scores(np.arange(60)).numpy()
        np.testing.assert_allclose(users @ items.T + popularity, expected, rtol=1e-4, atol=1e-5)


def test_a_verb_runs_its_own_module(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(planted, tmp_path / "run")
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--split", "valid", "--no-baselines"]) == 0
    assert "text" in json.loads((tmp_path / "run" / "evaluation-valid.json").read_text())["rows"]
    assert main(["recommend", "--run", str(tmp_path / "run"), "--users", "nobody"]) == 2
    assert "got 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "prepare"),
        (["--version"], 0, f"gnnmr-dist {gnnmr_dist.__version__}"),
        ([], 2, "expected one of prepare, train, status, evaluate, recommend, got nothing"),
        (["predict"], 2, "expected one of prepare, train, status, evaluate, recommend, got 'predict'"),
    ],
)
def test_the_command_without_a_verb(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert words in (shown.err if code else shown.out)
