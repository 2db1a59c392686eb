"""``prepare`` from end to end: counts, ids, order of rows and kind of file; and the three real data sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from raw_files import csv_text, interaction_rows, write_source

from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.data.recipe import load_recipe
from gnnmr_dist.data.tables import open_source
from gnnmr_dist.errors import InputError
from gnnmr_dist.prepare import command, prepare

RECIPES = Path(__file__).parents[2] / "benchmarks" / "datasets"


def prepared(folder: Path, output: str = "out") -> Dataset:
    prepare(load_recipe(folder / "recipe.toml"), open_source(str(folder / "source")), folder / output)
    return open_dataset(folder / output)


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "recipe.toml").read_text()
    assert old in text
    (folder / "recipe.toml").write_text(text.replace(old, new))


def triples(data: Dataset) -> set[tuple[str, str, int, float, str]]:
    """Every interaction in the words of the source."""
    found = set()
    for split in ("train", "valid", "test"):
        part = data.interactions(split)
        assert part.timestamps is not None
        assert part.weights is not None
        for user, item, time, weight in zip(
            part.users, part.items, part.timestamps, part.weights, strict=True
        ):
            found.add((data.user_ids[user], data.item_ids[item], int(time), float(weight), split))
    return found


def test_every_interaction_comes_back_with_its_own_ids(tmp_path: Path) -> None:
    write_source(tmp_path)
    data = prepared(tmp_path)
    rows = {
        (user, item, int(time), float(hours), part) for user, item, hours, time, part in interaction_rows()
    }
    assert triples(data) == rows
    assert list(data.item_ids) == list("abcde")
    assert data.item_titles is not None
    assert list(data.item_titles)[2] == "Gamma, the third"
    assert [m.name for m in data.modalities] == [
        "text",
        "genre",
        "tags",
        "sector",
        "country",
        "image",
        "audio",
    ]
    assert {m.name: m.missing for m in data.modalities} == {
        "text": 1, "genre": 1, "tags": 1, "sector": 1, "country": 1, "image": 2, "audio": 3
    }  # fmt: skip


def test_csv_tsv_and_parquet_give_the_same_data_set(tmp_path: Path) -> None:
    write_source(tmp_path)
    digest = prepared(tmp_path).digest
    for suffix in (".tsv", ".parquet"):
        for name in ("interactions", "items"):
            table = pacsv.read_csv(tmp_path / "source" / f"{name}.csv")
            if suffix == ".parquet":
                pq.write_table(table, tmp_path / "source" / f"{name}.parquet")
            else:
                options = pacsv.WriteOptions(delimiter="\t")
                pacsv.write_csv(table, tmp_path / "source" / f"{name}.tsv", options)
        edit(tmp_path, ".csv" if suffix == ".tsv" else ".tsv", suffix)
        assert prepared(tmp_path, f"out{suffix}").digest == digest


@pytest.mark.parametrize("section", ['method = "random"', 'method = "cold-items"\nshare = 0.5'])
def test_the_order_of_rows_in_a_file_does_not_matter(tmp_path: Path, section: str) -> None:
    write_source(tmp_path)
    edit(tmp_path, 'method = "column"', section)
    digest = prepared(tmp_path).digest
    rows = interaction_rows()
    shuffled = [rows[row] for row in np.random.default_rng(0).permutation(len(rows))]
    (tmp_path / "source" / "interactions.csv").write_text(csv_text(shuffled))
    assert prepared(tmp_path, "again").digest == digest


def test_seeds_give_different_splits(tmp_path: Path) -> None:
    write_source(tmp_path)
    edit(tmp_path, 'method = "column"', 'method = "random"\nseed = 1')
    digest = prepared(tmp_path).digest
    edit(tmp_path, "seed = 1", "seed = 2")
    assert prepared(tmp_path, "again").digest != digest


def test_a_catalogue_of_interacted_items_keeps_features_with_their_items(tmp_path: Path) -> None:
    write_source(tmp_path)
    rows = [row for row in interaction_rows() if row[1] != "b"]
    (tmp_path / "source" / "interactions.csv").write_text(csv_text(rows))
    everything = prepared(tmp_path)
    edit(tmp_path, 'title = "title"', 'title = "title"\ncatalogue = "interacted"')
    data = prepared(tmp_path, "fewer")
    assert list(everything.item_ids) == list("abcde")
    assert list(data.item_ids) == list("acde")
    kept = [0, 2, 3, 4]
    assert triples(data) == triples(everything)
    assert np.array_equal(data.features("text").values, everything.features("text").values[kept])
    assert np.array_equal(data.features("genre").present, everything.features("genre").present[kept])


def test_repeated_pairs_keep_the_row_asked_for(tmp_path: Path) -> None:
    write_source(tmp_path)
    rows = [*interaction_rows(), ["u0", "a", "77.0", "999", "train"]]
    (tmp_path / "source" / "interactions.csv").write_text(csv_text(rows))
    for keep, hours in (("first", 0.5), ("last", 77.0)):
        edit(tmp_path, "[interactions]", f'[interactions]\nduplicates = "{keep}"')
        found = [row for row in triples(prepared(tmp_path, keep)) if row[:2] == ("u0", "a")]
        edit(tmp_path, f'duplicates = "{keep}"\n', "")
        assert [row[3] for row in found] == [hours]


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    write_source(tmp_path)
    table = {
        "user": pa.array([30, 10, 20], pa.uint16()),
        "item": ["a", "b", "a"],
        "split": ["test", "train", "valid"],
    }
    pq.write_table(pa.table(table), tmp_path / "source" / "i.parquet")
    edit(tmp_path, '"interactions.csv"\ntimestamp = "time"\nweight = "hours"', '"i.parquet"')
    data = prepared(tmp_path)
    assert list(data.user_ids) == [10, 20, 30]
    assert data.interactions("test").users.tolist() == [2]


def test_a_source_and_an_output_may_be_uris(tmp_path: Path) -> None:
    write_source(tmp_path)
    digest = prepared(tmp_path).digest
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert prepare(recipe, open_source(f"file://{tmp_path}/source"), f"file://{tmp_path}/remote") == digest
    with pytest.raises(InputError, match="expected a new directory"):
        prepare(recipe, open_source(f"file://{tmp_path}/source"), f"file://{tmp_path}/remote")


def test_the_provenance_tells_recipe_source_and_counts(tmp_path: Path) -> None:
    write_source(tmp_path)
    edit(tmp_path, 'weight = "hours"', 'weight = "hours"\nmin_weight = 1.0')
    provenance = prepared(tmp_path).provenance
    assert provenance["rows"] == {"read": 18, "kept": 15}
    assert provenance["recipe"]["interactions"]["min_weight"] == 1.0
    assert provenance["source"] == str(tmp_path / "source")


def test_planted_data_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--users", "80", "--items", "90", "--modalities", "2", "--seed", "3"]
    command(["--synthetic", *options, "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    data = open_dataset(tmp_path / "out")
    assert lines[0].startswith("synthetic: 80 users x 90 items, ")
    assert lines[-2] == f"digest: {data.digest}"
    assert (
        lines[-1]
        == f"next: python -m gnnmr_dist.train --dataset {tmp_path / 'out'} --output RUN --num-workers 2"
    )
    assert len(lines) == 4 + len(data.modalities)


def test_the_module_runs_and_ends_with_code_2_on_bad_input(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gnnmr_dist.prepare", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "one of the arguments --recipe --recbole --mmrec --synthetic is required" in run.stderr


REAL = {
    "steam200k": (12_393, 5_155, [103_270, 12_781, 12_753], {"text": 3_995, "banner": 3_530}, 3),
    "se_funds_2022q4": (427, 7_450, [61_042, 7_629, 7_528], {"text": 4_458, "gics_fi": 7_450}, 14),
    "ml100k": (943, 1_682, [33_220, 33_346, 33_434], {"image": 1_682 - 19, "text": 1_682}, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_has_the_counts_of_its_description(name: str, data_root: Path, tmp_path: Path) -> None:
    num_users, num_items, sizes, present, num_modalities = REAL[name]
    prepare(load_recipe(RECIPES / f"{name}.toml"), open_source(str(data_root / name)), tmp_path / "out")
    data = open_dataset(tmp_path / "out")
    assert (data.num_users, data.num_items) == (num_users, num_items)
    assert [data.interactions(split).users.size for split in ("train", "valid", "test")] == sizes
    assert len(data.modalities) == num_modalities
    missing = {modality.name: modality.missing for modality in data.modalities}
    assert {key: num_items - missing[key] for key in present} == present
    raw = pq.read_table(data_root / name / "interactions.parquet", columns=["user", "item", "split"])
    test = raw.filter(pa.compute.equal(raw["split"], "test"))
    part = data.interactions("test")
    users, items = np.asarray(data.user_ids)[part.users], np.asarray(data.item_ids)[part.items]
    assert set(zip(users.tolist(), items.tolist(), strict=True)) == set(
        zip(test["user"].to_pylist(), test["item"].to_pylist(), strict=True)
    )
