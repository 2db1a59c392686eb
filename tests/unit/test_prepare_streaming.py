"""Batches, buckets and blocks of a few rows give the data set that a plain in-memory computation gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from gnnmr_dist.cli import guarded
from gnnmr_dist.data import scratch, sorting, splits, tables, text_tables
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.recipe import parse_recipe
from gnnmr_dist.data.tables import open_source
from gnnmr_dist.prepare import command, prepare
from gnnmr_dist.randomness import Purpose, generator

ROWS, USERS, ITEMS = 700, 30, 40


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "BLOCK_ROWS", 13)
    monkeypatch.setattr(splits, "BLOCK_ROWS", 13)
    monkeypatch.setattr(sorting, "BUCKET_ROWS", 50)
    monkeypatch.setattr(tables, "_BATCH_ROWS", 37)
    monkeypatch.setattr(text_tables, "_BLOCK_BYTES", 400)


def raw_table(kind: str) -> pa.Table:
    """Rows in no order, some pairs twice; ids that are whole numbers, or text."""
    random = np.random.default_rng(5)
    users, items = random.integers(0, USERS, ROWS), (ITEMS * random.random(ROWS) ** 2).astype(int)
    ids = {"user": users * 7 - 50, "item": items * 11}
    if kind == "text":
        ids = {
            "user": np.char.add("u", ids["user"].astype(str)),
            "item": np.char.add("é", ids["item"].astype(str)),
        }
    return pa.table({**ids, "time": random.integers(0, 90, ROWS), "hours": random.random(ROWS).round(3) * 9})


def write(folder: Path, table: pa.Table, suffix: str, **sections: object) -> Path:
    (folder / "source").mkdir(exist_ok=True)
    file = folder / "source" / f"rows.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, file, row_group_size=101)
    else:
        pacsv.write_csv(table, file)
    known = pa.compute.unique(table["item"].combine_chunks()).sort()
    vectors = np.random.default_rng(1).standard_normal((len(known), 3), np.float32)
    np.save(folder / "source" / "v.npy", vectors)
    np.save(folder / "source" / "ids.npy", np.array(known.to_pylist()))
    return file


def recipe(
    file: Path, split: dict[str, object], duplicates: str = "first", k_core: int = 0
) -> dict[str, object]:
    return {
        "name": "rows",
        "interactions": {
            "file": file.name,
            "timestamp": "time",
            "weight": "hours",
            "min_weight": 0.7,
            "duplicates": duplicates,
        },
        "filter": {"k_core": k_core},
        "split": split,
        "modality": [
            {"kind": "dense", "name": "v", "file": "v.npy", "ids": "ids.npy", "unknown_ids": "skip"}
        ],
    }


def in_memory(
    table: pa.Table, split: dict[str, object], duplicates: str, k_core: int
) -> dict[str, set[tuple]]:
    """The rows (user id, item id, time, weight) of each split, by sorting and sets."""
    chosen: dict[tuple, tuple] = {}
    for user, item, time, hours in zip(*(column.to_pylist() for column in table.columns), strict=True):
        if duplicates == "last" or (user, item) not in chosen:
            chosen[user, item] = (user, item, time, hours)
    rows = sorted((row for row in chosen.values() if row[3] >= 0.7), key=lambda row: row[:2])
    while k_core:
        users, items = ([row[side] for row in rows] for side in (0, 1))
        left = [row for row in rows if users.count(row[0]) >= k_core and items.count(row[1]) >= k_core]
        if left == rows:
            break
        rows = left
    part = [0] * len(rows)
    if split["method"] == "random":
        order = generator(3, Purpose.SPLIT).permutation(len(rows))
        first, second = int(0.6 * len(rows) + 0.5), int((0.6 + 0.2) * len(rows) + 0.5)
        for position, row in enumerate(order):
            part[row] = int(position >= first) + int(position >= second)
    elif split["method"] == "user-time":
        for user in {row[0] for row in rows}:
            own = sorted((n for n, row in enumerate(rows) if row[0] == user), key=lambda n: rows[n][2])
            if len(own) > 2:
                part[own[-2]], part[own[-1]] = 1, 2
    elif split["method"] == "global-time":
        times = sorted(row[2] for row in rows)
        first, second = int(0.6 * len(rows) + 0.5), int((0.6 + 0.2) * len(rows) + 0.5)
        part = [int(row[2] >= times[first]) + int(row[2] >= times[second]) for row in rows]
    else:
        known = sorted({row[1] for row in rows})
        held = generator(3, Purpose.SPLIT).permutation(np.arange(len(known)))[: int(0.4 * len(known) + 0.5)]
        cold = {known[item]: 1 if n < len(held) // 2 else 2 for n, item in enumerate(held)}
        part = [cold.get(row[1], 0) for row in rows]
    names = ("train", "valid", "test")
    return {
        name: {(r[0], r[1], r[2], np.float32(r[3])) for r, p in zip(rows, part, strict=True) if p == number}
        for number, name in enumerate(names)
    }


SPLITS = [
    {"method": "random", "ratios": [0.6, 0.2, 0.2], "seed": 3},
    {"method": "user-time", "leave": 1},
    {"method": "global-time", "ratios": [0.6, 0.2, 0.2]},
    {"method": "cold-items", "share": 0.4, "seed": 3},
]


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split["method"])
@pytest.mark.parametrize(
    ("kind", "suffix", "duplicates", "k_core"),
    [("number", "parquet", "first", 0), ("text", "csv", "last", 5), ("number", "csv", "first", 4)],
)
def test_small_steps_give_what_memory_gives(
    tmp_path: Path, split: dict, kind: str, suffix: str, duplicates: str, k_core: int
) -> None:
    table = raw_table(kind)
    file = write(tmp_path, table, suffix)
    parsed = parse_recipe(recipe(file, split, duplicates, k_core), "recipe")
    prepare(parsed, open_source(str(tmp_path / "source")), tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    users, items = data.user_ids, data.item_ids
    for name, expected in in_memory(table, split, duplicates, k_core).items():
        part = data.interactions(name)
        assert part.timestamps is not None
        assert part.weights is not None
        rows = zip(users[part.users], items[part.items], part.timestamps.tolist(), part.weights, strict=True)
        assert set(rows) == expected
    assert list(users) == sorted(users)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_size_of_the_steps_does_not_show(
    tmp_path: Path, suffix: str, request: pytest.FixtureRequest
) -> None:
    file = write(tmp_path, raw_table("text"), suffix)
    parsed = parse_recipe(recipe(file, SPLITS[0]), "recipe")
    digest = prepare(parsed, open_source(str(tmp_path / "source")), tmp_path / "large")
    request.getfixturevalue("_tiny")
    assert prepare(parsed, open_source(str(tmp_path / "source")), tmp_path / "small") == digest


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("user", 430, None, "row 430: expected an id in column 'user', got null"),
        ("time", 619, "soon", "row 619: expected a number in column 'time', got 'soon'"),
        ("hours", 77, "nan", "row 77: expected a finite number in column 'hours', got nan"),
    ],
)
def test_a_fault_in_a_late_batch_names_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str, row: int, value: str, message: str
) -> None:
    table = raw_table("text")
    values = [str(v) for v in table[column].to_pylist()]
    values[row] = value
    file = write(
        tmp_path, table.set_column(table.column_names.index(column), column, pa.array(values)), "csv"
    )
    parsed = parse_recipe(recipe(file, SPLITS[0]), "recipe")
    with pytest.raises(Exception, match=message):
        prepare(parsed, open_source(str(tmp_path / "source")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("_tiny")
def test_the_first_repeated_pair_is_named_whatever_bucket_it_is_in(tmp_path: Path) -> None:
    table = raw_table("number")
    pairs = list(zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True))
    first = next(row for row, pair in enumerate(pairs) if pair in pairs[:row])
    parsed = parse_recipe(recipe(write(tmp_path, table, "parquet"), SPLITS[0], "error"), "recipe")
    with pytest.raises(Exception, match=f"row {first}: expected each user-item pair once"):
        prepare(parsed, open_source(str(tmp_path / "source")), tmp_path / "out")


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write(tmp_path, raw_table("number"), "parquet")
    (tmp_path / "r.toml").write_text(
        'name = "rows"\n[interactions]\nfile = "rows.parquet"\nduplicates = "first"\n[split]\nmethod = "random"\n'
        '[[modality]]\nname = "v"\nkind = "dense"\nfile = "v.npy"\nids = "ids.npy"\n'
    )
    monkeypatch.setattr(scratch.Growing, "append", full)
    options = ["--recipe", str(tmp_path / "r.toml"), "--source", str(tmp_path / "source")]
    assert guarded(command, [*options, "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("failed: ")
    assert not (tmp_path / "out").exists()
