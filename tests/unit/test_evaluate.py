from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import gnnmr_dist
from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.ease import BaselineSkipped
from gnnmr_dist.evaluate import METRICS, evaluate_run, main
from gnnmr_dist.loaded import LoadedRun, Protocol
from gnnmr_dist.reporting import markdown_table

AMONG_COLD = "evaluation-test-cold.json"  # benchmarks/study reads it
MEMBERS = ["text", "image", "audio", "category", "m5"]
ROWS = [*MEMBERS, "concatenation", "average", "aligned-average", "linear-peer", "fused"]
BASELINES = ["popularity", "item-knn", "ease"]


def sets(loaded: LoadedRun, split: str) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    pairs = loaded.dataset.interactions(split)
    for user, item in zip(pairs.users.tolist(), pairs.items.tolist(), strict=True):
        found.setdefault(user, set()).add(item)
    return found


def brute_force(
    loaded: LoadedRun, row: str, masks: list[str], k: int, kept: frozenset[int] = frozenset(range(70))
) -> dict[str, float]:
    """Every metric of the test split by sorting every user's items in plain Python."""
    scores = loaded.scorer(row).scores(np.arange(60)).numpy()
    found = {user: items & kept for user, items in sets(loaded, "test").items()}
    truth, hidden = {u: items for u, items in found.items() if items}, [sets(loaded, s) for s in masks]
    popular = loaded.dataset.graph.degree()[60:]
    sums, shown = dict.fromkeys(METRICS, 0.0), set()
    for user, wanted in truth.items():
        masked = set().union(*(h.get(user, set()) for h in hidden))
        order = sorted((i for i in kept if i not in masked), key=lambda i: (-scores[user, i], i))[:k]
        hits = [place for place, item in enumerate(order, 1) if item in wanted]
        ideal = sum(1 / math.log2(p + 1) for p in range(1, min(k, len(wanted)) + 1))
        sums["Recall"] += len(hits) / len(wanted)
        sums["NDCG"] += sum(1 / math.log2(p + 1) for p in hits) / ideal
        sums["Precision"] += len(hits) / k
        sums["HitRate"] += bool(hits)
        sums["MRR"] += 1 / hits[0] if hits else 0
        sums["AveragePopularity"] += sum(popular[i] for i in order) / len(order)
        shown |= set(order)
    means = {f"{name}@{k}": total / len(truth) for name, total in sums.items()}
    return means | {f"Coverage@{k}": len(shown) / 70}


@pytest.mark.parametrize("mask_valid", [False, True])
def test_every_number_is_that_of_a_brute_force_ranking(loaded: LoadedRun, mask_valid: bool) -> None:
    protocol = Protocol("test", (5, 20), mask_valid)
    found = evaluate_run(loaded, protocol, baselines=False).rows
    assert list(found) == ROWS
    masks = ["train", "valid"] if mask_valid else ["train"]
    for row in ROWS:
        expected = brute_force(loaded, row, masks, 5) | brute_force(loaded, row, masks, 20)
        assert found[row] == pytest.approx(expected, rel=1e-12)
    assert len({values["NDCG@20"] for values in found.values()}) > 4  # rows are not one and the same


def test_among_cold_items_only_they_are_ranked_and_looked_for(loaded: LoadedRun) -> None:
    counts = loaded.dataset.graph.degree()[60:]
    cold = frozenset(np.flatnonzero(counts == 0).tolist())
    assert len(cold) > 1
    found = evaluate_run(loaded, Protocol("test", (1, 2), among="cold")).rows
    for row in ROWS:
        expected = brute_force(loaded, row, ["train"], 1, cold) | brute_force(loaded, row, ["train"], 2, cold)
        assert found[row] == pytest.approx(expected, rel=1e-12)
    train, test = sets(loaded, "train"), sets(loaded, "test")
    wanted = [items & cold for items in test.values() if items & cold]
    first = set(sorted(cold)[:2])
    assert not any(cold & items for items in train.values())
    for row in BASELINES:  # nothing tells them apart: by number
        assert found[row]["Recall@2"] == pytest.approx(np.mean([len(w & first) / len(w) for w in wanted]))


def test_cold_items_have_files_of_their_own(planted: Path, tmp_path: Path, loaded: LoadedRun) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)
    options = ["--run", str(run), "--split", "test", "--no-baselines", "--ks", "2"]
    assert main([*options, "--among", "cold", "--json", str(tmp_path / "n.json")]) == 0
    assert not (run / "evaluation-test.json").exists()
    found = json.loads((run / AMONG_COLD).read_text())
    assert found["rows"] == json.loads((tmp_path / "n.json").read_text())
    origin, cold = found["provenance"], int((loaded.dataset.graph.degree()[60:] == 0).sum())
    assert (origin["among"], origin["items_ranked"]) == ("cold", cold)
    page = (run / "evaluation-test-cold.md").read_text()
    assert f"Full ranking of the {cold} items without a train interaction; masked: train items" in page
    assert f"Means over {origin['users_evaluated']} users with at least one test item among them" in page
    users = pq.read_table(run / "evaluation-test-cold-users.parquet")
    assert len(set(users["user"].to_pylist())) == origin["users_evaluated"]
    text = gnnmr_dist.load_run(str(run)).evaluate("test", ks=[2], among="cold", baselines=False)
    assert text == found["rows"]
    assert main(options) == 0
    assert json.loads((run / "evaluation-test.json").read_text())["provenance"]["among"] == "all"


def test_popularity_row_is_the_ranking_by_train_count(loaded: LoadedRun) -> None:
    found = evaluate_run(loaded, Protocol("test", (5,))).rows["popularity"]
    counts, train, test = loaded.dataset.graph.degree()[60:], sets(loaded, "train"), sets(loaded, "test")
    order = sorted(range(70), key=lambda i: (-counts[i], i))
    recalls = []
    for user, wanted in test.items():
        top = [i for i in order if i not in train.get(user, set())][:5]
        recalls.append(len(wanted & set(top)) / len(wanted))
    assert found["Recall@5"] == pytest.approx(sum(recalls) / len(recalls), rel=1e-12)


@pytest.fixture(scope="module")
def written(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("written") / "run"
    shutil.copytree(planted, run)
    arguments = ["--run", str(run), "--split", "test", "--json", str(run / "out" / "numbers.json")]
    assert main(arguments) == 0
    return run


def test_the_json_file_is_exactly_rows_of_metrics(written: Path, loaded: LoadedRun) -> None:
    found = json.loads((written / "out" / "numbers.json").read_text())
    assert list(found) == [*ROWS, *BASELINES]
    for values in found.values():
        assert set(values) == {f"{metric}@{k}" for metric in METRICS for k in (5, 20)}
    assert found == evaluate_run(loaded, Protocol("test", (5, 20))).rows


def test_the_runs_own_json_says_where_the_numbers_come_from(written: Path, loaded: LoadedRun) -> None:
    found = json.loads((written / "evaluation-test.json").read_text())
    assert set(found) == {"rows", "skipped", "provenance"}
    assert found["rows"] == json.loads((written / "out" / "numbers.json").read_text())
    assert found["skipped"] == {}
    origin = found["provenance"]
    assert origin["data_digest"] == loaded.dataset.digest
    assert origin["masked"] == ["train"]
    assert origin["users_evaluated"] == len(sets(loaded, "test"))
    assert origin["users_without_train"] == len(set(sets(loaded, "test")) - set(sets(loaded, "train"))) > 0
    assert origin["choices"]["ease"].startswith("l2 = ")
    assert origin["choices"]["item-knn"].startswith("neighbours = ")
    assert set(origin["choices"]) == {"ease", "item-knn", "linear-peer"}
    assert {"torch", "gnnmr-dist", "python"} <= set(origin["versions"])


def test_the_page_names_split_masking_and_users(written: Path) -> None:
    page = (written / "evaluation-test.md").read_text()
    assert "masked: train items of each user. Validation items stay in the ranking." in page
    assert "users with at least one test item; " in page
    assert page.count("| concatenation") == 2  # one table per cut-off
    assert "chosen on validation" in page


def test_per_user_values_average_to_the_table(written: Path, loaded: LoadedRun) -> None:
    table = pq.read_table(written / "evaluation-test-users.parquet")
    rows = json.loads((written / "evaluation-test.json").read_text())["rows"]
    truth = sets(loaded, "test")
    ids = loaded.dataset.user_ids
    for name, values in rows.items():
        part = table.filter(np.array(table["row"].to_pylist()) == name)
        assert part["user"].to_pylist() == [ids[user] for user in sorted(truth)]
        assert part["num_items"].to_pylist() == [len(truth[user]) for user in sorted(truth)]
        for metric in part.column_names[3:]:
            assert np.mean(part[metric].to_numpy()) == pytest.approx(values[metric], rel=1e-12)


def test_a_skipped_baseline_has_a_reason_and_no_row(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    too_large = replace(CLOSED_FORM["ease"], too_large=lambda *_: BaselineSkipped("EASE skipped: too big"))
    monkeypatch.setitem(CLOSED_FORM, "ease", too_large)
    run = tmp_path / "run"
    shutil.copytree(planted, run)
    assert main(["--run", str(run), "--split", "valid", "--ks", "3", "--json", str(tmp_path / "n.json")]) == 0
    assert "ease" not in json.loads((tmp_path / "n.json").read_text())
    assert json.loads((run / "evaluation-valid.json").read_text())["skipped"] == {
        "ease": "EASE skipped: too big"
    }
    assert "EASE skipped: too big" in (run / "evaluation-valid.md").read_text()
    assert "EASE skipped: too big" in capsys.readouterr().out


def test_no_baselines_and_masked_validation_items(planted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)
    assert main(["--run", str(run), "--split", "test", "--no-baselines", "--mask-valid"]) == 0
    found = json.loads((run / "evaluation-test.json").read_text())
    assert list(found["rows"]) == ROWS
    assert found["provenance"]["masked"] == ["train", "valid"]
    assert "masked: train and valid items" in (run / "evaluation-test.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "train"], "argument --split: invalid choice: 'train'"),
        (["--split", "test", "--ks", "0"], "ks: expected cut-offs in 1..70 (the number of items), got 0"),
        (["--split", "test", "--ks", "71"], "ks: expected cut-offs in 1..70 (the number of items), got 71"),
        (["--split", "valid", "--mask-valid"], "mask_valid: expected split test, got valid"),
        (["--split", "test", "--num-workers", "-1"], "num_workers: expected 0 or more, got -1"),
        (["--split", "test", "--json", "{run}"], "{run}: expected a file to write, got a directory"),
        (
            ["--split", "test", "--json", "{run}/run.json/x"],
            "expected a place to write a file, got one below the file",
        ),
        (
            ["--split", "test", "--dataset", "{run}"],
            "{run}/manifest.json: expected a manifest, got nothing there",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    planted: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(planted.rglob("*"))
    assert main(["--run", str(planted), *(o.format(run=planted) for o in options)]) == 2
    error = capsys.readouterr().err
    assert message.format(run=planted) in error
    assert error.count("\n") == 1
    assert sorted(planted.rglob("*")) == before


def test_best_values_are_bold_also_when_equal() -> None:
    rows = {"a": {"x": 0.5, "y": 123.0}, "b": {"x": 0.5}, "c": {"x": 0.25, "y": 7.0}}
    assert markdown_table(rows, ["x", "y"], "row", best=["x"]) == (
        "| row |          x |      y |\n"
        "|-----|-----------:|-------:|\n"
        "| a   | **0.5000** |  123.0 |\n"
        "| b   | **0.5000** |      - |\n"
        "| c   |     0.2500 | 7.0000 |"
    )
