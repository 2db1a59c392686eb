from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import csv

from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import DenseTable, open_dataset
from gnnmr_dist.data.writer import ModalityData, write_dataset
from gnnmr_dist.errors import InputError
from gnnmr_dist.fusion import Fusion, LinearPeer
from gnnmr_dist.loaded import LoadedRun, open_run
from gnnmr_dist.new_items import read_new_items, score_with_new_items
from gnnmr_dist.recommend import Recommender, main, write_recommendations
from gnnmr_dist.train import train


def seen(loaded: LoadedRun, user: int) -> set[int]:
    graph = loaded.dataset.graph
    return set((graph.indices[graph.indptr[user] : graph.indptr[user + 1]] - 60).tolist())


@pytest.mark.parametrize("row", ["text", "concatenation", "aligned-average"])
def test_lists_are_the_best_unseen_items_with_original_ids(loaded: LoadedRun, row: str) -> None:
    users = np.array([7, 0, 59])
    table = Recommender(loaded, 5, row).table(users)
    scores = loaded.scorer(row).scores(users).numpy()
    expected = []
    for j, user in enumerate(users.tolist()):
        unseen = [i for i in range(70) if i not in seen(loaded, user)]
        best = sorted(unseen, key=lambda i: (-scores[j, i], i))[:5]
        expected += [(f"u{user}", rank, f"i{i}", f"Item {i}") for rank, i in enumerate(best, 1)]
    columns = (table[name].to_pylist() for name in ("user", "rank", "item", "title"))
    assert list(zip(*columns, strict=True)) == expected
    assert table["cold"].to_pylist() == [int(i[1:]) < 4 for i in table["item"].to_pylist()]


def test_a_list_of_all_items_leaves_out_the_seen_ones_unless_asked(loaded: LoadedRun) -> None:
    user = int(np.argmax(loaded.dataset.graph.degree()[:60]))
    unseen = Recommender(loaded, 70).table(np.array([user]))
    assert {int(i[1:]) for i in unseen["item"].to_pylist()} == set(range(70)) - seen(loaded, user)
    everything = Recommender(loaded, 70, include_seen=True).table(np.array([user]))
    assert everything.num_rows == 70
    order = [
        (-s, int(i[1:]))
        for s, i in zip(everything["score"].to_pylist(), everything["item"].to_pylist(), strict=True)
    ]
    assert order == sorted(order)


def test_users_without_train_interactions_all_get_the_mean_users_list(loaded: LoadedRun) -> None:
    table = Recommender(loaded, 10).table(np.array([0, 1]))  # the first three users are cold
    assert table["item"].to_pylist()[:10] == table["item"].to_pylist()[10:]


@pytest.mark.parametrize("name", ["lists.parquet", "lists.csv"])
def test_a_file_of_all_users_written_in_blocks_is_the_table(
    planted: Path, loaded: LoadedRun, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnnmr_dist.recommend.ROWS_PER_BLOCK", 50)  # 7 users at once: the last block is short
    output = tmp_path / "new" / name
    assert main(["--run", str(planted), "--all", "--k", "7", "--output", str(output)]) == 0
    found = pq.read_table(output) if name.endswith(".parquet") else csv.read_csv(output)
    expected = Recommender(loaded, 7).table(np.arange(60))
    assert found.drop_columns("score").to_pylist() == expected.drop_columns("score").to_pylist()
    np.testing.assert_allclose(found["score"].to_numpy(), expected["score"].to_numpy(), rtol=1e-5)


def test_a_failure_half_way_leaves_the_old_file(
    loaded: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnnmr_dist.recommend.ROWS_PER_BLOCK", 50)
    output = tmp_path / "lists.parquet"
    output.write_text("old")
    recommender = Recommender(loaded, 5)
    real = recommender.table

    def failing(users: Any) -> Any:
        if users[0] > 0:
            raise RuntimeError("power cut")
        return real(users)

    monkeypatch.setattr(recommender, "table", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        write_recommendations(recommender, np.arange(60), str(output))
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_the_terminal_shows_ids_titles_and_a_note(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.txt").write_text("u7\n\nu0\nu7\n")
    assert main(["--run", str(planted), "--users-file", str(tmp_path / "users.txt"), "--k", "3"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line for line in lines if line.startswith("user")] == ["user u7", "user u0"]
    assert sum("Item " in line for line in lines) == 6
    assert "1 of 2 users have no train interactions" in shown.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--users", "u1", "who"], "users.parquet: expected a known user id, got 'who'"),
        (["--users", "u1", "--k", "0"], "k: expected 1..70 (the number of items), got 0"),
        (["--users", "u1", "--k", "71"], "k: expected 1..70 (the number of items), got 71"),
        (
            ["--users", "u1", "--row", "smell"],
            "row: expected one of text, image, audio, category, m5, concatenation",
        ),
        (["--all"], "--all: expected --output FILE with it, got none"),
        (
            ["--all", "--output", "x.txt"],
            "--output: expected a name that ends with .parquet or .csv, got 'x.txt'",
        ),
        (["--all", "--output", "{tmp}/d.csv"], "d.csv: expected a file to write, got a directory"),
        (
            ["--all", "--output", "{tmp}/f/x.csv"],
            "expected a place to write a file, got one below the file {tmp}/f",
        ),
        (["--users-file", "{tmp}/none"], "{tmp}/none: expected a text file of user ids, got No such file"),
        (["--users-file", "{tmp}/f"], "{tmp}/f: expected at least one user id, got none"),
        (["--users", "u1", "--all"], "argument --all: not allowed with argument --users"),
        ([], "one of the arguments --users --users-file --all is required"),
        (
            ["--users", "u1", "--new-items", "{tmp}/none"],
            "{tmp}/none: expected a Parquet file of new items, got nothing",
        ),
    ],
)
def test_bad_input_is_one_line(
    planted: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d.csv").mkdir()
    (tmp_path / "f").write_text("\n")
    assert main(["--run", str(planted), *(o.format(tmp=tmp_path) for o in options)]) == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error
    assert error.count("\n") == 1


def new_items(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def dense(loaded: LoadedRun, name: str, item: int) -> list[float]:
    table = loaded.dataset.features(name)
    assert isinstance(table, DenseTable)
    return [float(value) for value in table.values[item]]


def test_new_items_are_ranked_among_the_others(planted: Path, loaded: LoadedRun, tmp_path: Path) -> None:
    item = int(np.flatnonzero(np.asarray(loaded.dataset.features("text").present))[0])
    file = new_items(
        tmp_path / "new.parquet",
        id=["n0", "n1"],
        title=["New 0", None],
        text=[dense(loaded, "text", item), None],
        category=["cluster 3", "cluster 99"],
        m5=[["tag 1", "tag 2", "no tag"], None],
    )
    items = read_new_items(file, loaded.dataset)
    assert items.titles.to_pylist() == ["New 0", "n1"]
    assert {name: rows.present.tolist() for name, rows in items.rows.items()} == {
        "text": [True, False],
        "image": [False, False],
        "audio": [False, False],
        "category": [True, False],
        "m5": [True, False],
    }
    assert items.rows["category"].values[0] == loaded.dataset.vocabulary("category").index("cluster 3")
    tags = loaded.dataset.vocabulary("m5")
    assert items.rows["m5"].values.tolist() == [tags.index("tag 1"), tags.index("tag 2")]
    assert [note.split(": ", 1)[-1] for note in items.notes[:2]] == [
        "1 values of column 'category' are unknown and count as missing: 'cluster 99'",
        "1 values of column 'm5' are unknown and count as missing: 'no tag'",
    ]
    assert "1 of 2 new items have no known feature at all" in items.notes[2]
    output = tmp_path / "lists.parquet"
    options = [
        "--users",
        "u9",
        "--k",
        "72",
        "--include-seen",
        "--new-items",
        str(file),
        "--output",
        str(output),
    ]
    assert main(["--run", str(planted), *options]) == 0
    table = pq.read_table(output)
    assert set(table["item"].to_pylist()) == {f"i{i}" for i in range(70)} | {"n0", "n1"}
    assert [row["cold"] for row in table.to_pylist() if row["item"] in ("n0", "n1")] == [True, True]


@pytest.mark.parametrize(
    "row", ["text", "category", "m5", "concatenation", "average", "aligned-average", "fused"]
)
def test_new_items_change_no_known_items_score(loaded: LoadedRun, tmp_path: Path, row: str) -> None:
    file = new_items(tmp_path / "new.parquet", id=["n0"], category=["cluster 3"])
    users = np.arange(60)
    extended = score_with_new_items(loaded, row, read_new_items(file, loaded.dataset).rows).scores(users)
    assert extended.shape == (60, 71)
    torch.testing.assert_close(extended[:, :70], loaded.scorer(row).scores(users))


def test_the_concatenation_of_a_new_item_leaves_its_missing_modalities_out(
    loaded: LoadedRun, tmp_path: Path
) -> None:
    file = new_items(tmp_path / "new.parquet", id=["n0"], category=["cluster 3"])
    rows, users = read_new_items(file, loaded.dataset).rows, np.arange(60)
    alone = score_with_new_items(loaded, "category", rows).scores(users)[:, 70]
    torch.testing.assert_close(
        score_with_new_items(loaded, "concatenation", rows).scores(users)[:, 70], 5 * alone
    )


DIM = 32


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"title": ["x"]}, 'expected a column "id", got title'),
        ({"id": pa.array([], pa.string())}, "expected at least one new item, got none"),
        ({"id": ["n", None]}, "row 1: expected an id, got null"),
        ({"id": ["n", "m", "n"]}, "row 0: expected each id once, got 'n'"),
        ({"id": ["n", "i5"]}, "row 1: expected an id the data set does not have, got 'i5'"),
        ({"id": [["n"]]}, "expected column 'id' of ids like the data set's, string, got list"),
        (
            {"id": ["n"], "txt": ["x"]},
            "expected columns id, title, text, image, audio, category, m5 only, got 'txt'",
        ),
        ({"id": ["n"], "title": [["x"]]}, "expected column 'title' of strings, got list"),
        ({"id": ["n"], "text": ["x"]}, f"expected column 'text' of lists of {DIM} numbers, got string"),
        ({"id": ["n"], "text": [[1.0] * 31]}, f"row 0: expected {DIM} numbers in column 'text', got 31"),
        (
            {"id": ["n"], "text": [[1.0] * 31 + [None]]},
            "row 0: expected no null inside a row of column 'text'",
        ),
        (
            {"id": ["n"], "text": [[1.0] * 31 + [np.nan]]},
            "row 0: expected finite values of float16 in column 'text', got nan",
        ),
        (
            {"id": ["n"], "text": [[1.0] * 31 + [1e9]]},
            "finite values of float16 in column 'text', got 1000000000",
        ),
        ({"id": ["n"], "category": [["x"]]}, "expected column 'category' of strings, got list"),
        ({"id": ["n"], "m5": ["tag 1"]}, "expected column 'm5' of lists of strings, got string"),
    ],
)
def test_new_items_that_break_a_rule(
    loaded: LoadedRun, tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    file = new_items(tmp_path / "new.parquet", **columns)
    with pytest.raises(InputError) as error:
        read_new_items(file, loaded.dataset)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)


def test_a_file_that_is_not_parquet(loaded: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "new.parquet").write_text("id,title\n")
    with pytest.raises(InputError, match="expected a Parquet file"):
        read_new_items(tmp_path / "new.parquet", loaded.dataset)


@pytest.fixture(scope="module")
def tastes(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """Even users like even items, odd users odd ones; features tell even from odd. Items 38 and 39 are cold.

    Ids are integers, and there is no title.
    """
    home = tmp_path_factory.mktemp("tastes")
    random = np.random.default_rng(0)
    users, items = np.divmod(np.arange(40 * 38), 38)
    liked = (users % 2 == items % 2) & (random.random(users.size) < 0.6)
    users, items = users[liked].astype(np.int32), items[liked].astype(np.int32)
    parts = {"train": slice(0, None, 1), "valid": slice(0, None, 10), "test": slice(1, None, 10)}
    held = np.zeros(users.size, np.int8)
    held[parts["valid"]], held[parts["test"]] = 1, 2
    splits = {
        name: pa.table({"user": users[held == j], "item": items[held == j]}) for j, name in enumerate(parts)
    }
    side = np.eye(2, 8, dtype=np.float32)[np.arange(40) % 2]
    noisy = (side + 0.1 * random.standard_normal((40, 8))).astype(np.float32)
    present = np.ones(40, np.bool_)
    write_dataset(
        home / "data",
        name="tastes",
        users=pa.table({"id": np.arange(40) + 1000}),
        items=pa.table({"id": np.arange(40) + 2000}),
        splits=splits,
        modalities=[ModalityData(name, "dense", 8, present, noisy) for name in ("text", "image")],
        provenance={},
    )
    settings = {
        "model": {"embedding_dim": 8},
        "loss": {"num_candidates": 16},
        "training": {"epochs": 12, "global_batch_size": 64, "learning_rate": 0.02, "valid_every": 4},
        "evaluation": {"ks": [5], "select_metric": "Recall@5"},
    }
    train(open_dataset(home / "data"), str(home / "run"), build(("test", settings)))
    return open_run(home / "run")


@pytest.mark.parametrize("row", ["text", "concatenation", "aligned-average"])
def test_cold_items_of_the_catalogue_like_liked_ones_are_recommended(tastes: LoadedRun, row: str) -> None:
    table = Recommender(tastes, 40, row, include_seen=True).table(np.arange(40)).to_pylist()
    place = {(entry["user"] - 1000, entry["item"] - 2000): entry["rank"] for entry in table}
    for user in range(40):
        assert place[user, 38 + user % 2] <= 20
        assert place[user, 39 - user % 2] > 20
    assert {entry["item"] for entry in table if entry["cold"]} == {2038, 2039}


def test_a_cold_item_ranks_as_a_new_item_with_its_features(tastes: LoadedRun, tmp_path: Path) -> None:
    features = {name: [dense(tastes, name, 38)] for name in ("text", "image")}
    file = new_items(tmp_path / "new.parquet", id=[1], **features)
    extended = score_with_new_items(tastes, "concatenation", read_new_items(file, tastes.dataset).rows)
    scores = extended.scores(np.arange(40))
    torch.testing.assert_close(scores[:, 40], scores[:, 38])


def with_fusion(run: LoadedRun, feature_weight: float) -> LoadedRun:
    """The run as if validation had chosen this linear peer and nearly nothing but it."""
    run = replace(run)
    run.__dict__["fusion"] = Fusion(LinearPeer(10.0, feature_weight=feature_weight), 100.0)
    return run


def test_a_linear_peer_without_features_knows_nothing_of_new_items(tastes: LoadedRun, tmp_path: Path) -> None:
    file = new_items(tmp_path / "new.parquet", id=[1], text=[dense(tastes, "text", 0)])
    rows, run = read_new_items(file, tastes.dataset).rows, with_fusion(tastes, 0.0)
    with pytest.raises(InputError, match="expected a row that reads features, got linear-peer"):
        score_with_new_items(run, "linear-peer", rows)
    networks = score_with_new_items(run, "concatenation", rows).scores(np.arange(40))
    fused = score_with_new_items(run, "fused", rows).scores(np.arange(40))
    torch.testing.assert_close(fused[:, 40], networks[:, 40])


@pytest.mark.parametrize("row", ["linear-peer", "fused"])
def test_the_linear_peer_scores_new_items_by_their_features(
    tastes: LoadedRun, tmp_path: Path, row: str
) -> None:
    features = [dense(tastes, "text", 0), dense(tastes, "text", 1)]
    file = new_items(tmp_path / "new.parquet", id=[1, 2], text=features, image=features)
    rows, run = read_new_items(file, tastes.dataset).rows, with_fusion(tastes, 1.0)
    scores = score_with_new_items(run, row, rows).scores(np.arange(40))
    side = torch.arange(40) % 2
    liked, other = scores[torch.arange(40), 40 + side], scores[torch.arange(40), 41 - side]
    assert (liked > other).all()
    torch.testing.assert_close(scores[:, :40], run.scorer(row).scores(np.arange(40)))
    place = (scores > liked[:, None]).sum(dim=1)
    assert place.float().mean() < 21  # of 42: items that the user has are among them
    assert ((scores > other[:, None]).sum(dim=1) >= 21).all()


@pytest.mark.parametrize("row", ["text", "concatenation", "aligned-average"])
def test_a_new_item_like_liked_ones_is_recommended(tastes: LoadedRun, tmp_path: Path, row: str) -> None:
    features = [dense(tastes, "text", 0), dense(tastes, "text", 1)]
    file = new_items(tmp_path / "new.parquet", id=[1, 2], text=features, image=features)
    recommender = Recommender(
        tastes, 42, row, include_seen=True, new_items=read_new_items(file, tastes.dataset)
    )
    table = recommender.table(np.arange(40)).to_pylist()
    place = {(entry["user"] - 1000, entry["item"]): entry["rank"] for entry in table}
    for user in range(40):
        assert place[user, 1 + user % 2] <= 21
        assert place[user, 2 - user % 2] > 21
