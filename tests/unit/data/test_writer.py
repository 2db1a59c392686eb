"""What write_dataset writes, and that it never leaves half a data set."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_dataset import NUM_ITEMS, NUM_USERS, arguments, pairs

from gnnmr_dist.data import writer
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.writer import ModalityData, write_dataset
from gnnmr_dist.errors import InputError, RunError


def test_the_directory_is_the_documented_one(tmp_path: Path) -> None:
    digest = write_dataset(tmp_path / "data", **arguments())
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    found = sorted(
        str(file.relative_to(tmp_path / "data")) for file in (tmp_path / "data").rglob("*") if file.is_file()
    )
    assert found == sorted([*manifest["files"], "manifest.json"])
    assert manifest["format"] == 1
    assert (manifest["num_users"], manifest["num_items"]) == (NUM_USERS, NUM_ITEMS)
    assert manifest["splits"] == {"train": 40, "valid": 10, "test": 10}
    assert manifest["modalities"][1] == {
        "name": "image", "kind": "dense", "dim": 6, "dtype": "float16", "missing": 1,
    }  # fmt: skip
    assert manifest["provenance"]["source"] == "made up"
    for path, info in manifest["files"].items():
        data = (tmp_path / "data" / path).read_bytes()
        assert info == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    lines = "".join(f"{path}\t{info['sha256']}\n" for path, info in sorted(manifest["files"].items()))
    assert manifest["digest"] == digest == hashlib.sha256(lines.encode()).hexdigest()


def test_interactions_are_ordered_as_the_graph_s_edges(tmp_path: Path) -> None:
    given = arguments()
    write_dataset(tmp_path / "data", **given)
    table = pq.read_table(tmp_path / "data" / "train.parquet")
    rows = sorted(
        zip(*(given["splits"]["train"][name].to_pylist() for name in table.column_names), strict=True)
    )
    assert list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True)) == rows
    users, items = open_dataset(tmp_path / "data").graph.edges(np.arange(40))
    np.testing.assert_array_equal(users, table["user"].to_numpy())
    np.testing.assert_array_equal(items, table["item"].to_numpy())


def test_the_digest_depends_on_the_data_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    first, shuffled, other = arguments(), arguments(), arguments()
    order = np.random.default_rng(1).permutation(40)
    shuffled["splits"]["train"] = shuffled["splits"]["train"].take(order)
    other["modalities"][0].values[0, 0] += 1
    digests = [write_dataset(tmp_path / str(n), **given) for n, given in enumerate((first, shuffled, other))]
    assert digests[0] == digests[1] != digests[2]


def test_rows_that_are_not_present_become_zeros(tmp_path: Path) -> None:
    given = arguments()
    given["modalities"][0].values[3] = np.nan  # row 3 is not present
    write_dataset(tmp_path / "data", **given)
    assert not open_dataset(tmp_path / "data").features("text").values[3].any()


def test_extra_columns_of_items_are_kept_and_large_strings_accepted(tmp_path: Path) -> None:
    given = arguments()
    given["items"] = given["items"].append_column("price", pa.array(np.arange(10) / 2))
    given["users"] = given["users"].cast(pa.schema([("id", pa.large_string())]))
    write_dataset(tmp_path / "data", **given)
    assert pq.read_table(tmp_path / "data" / "items.parquet")["price"].to_pylist()[3] == 1.5
    assert open_dataset(tmp_path / "data").user_ids[2] == "user 2"


def test_an_empty_directory_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_dataset(tmp_path / "data", **arguments())
    with pytest.raises(InputError, match="expected a new or empty directory, got one with files in it"):
        write_dataset(tmp_path / "data", **arguments())
    with pytest.raises(InputError, match="expected a new or empty directory, got one with files in it"):
        write_dataset((tmp_path / "data").as_uri(), **arguments())
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file: expected a new or empty directory, got a file"):
        write_dataset(tmp_path / "file", **arguments())
    assert open_dataset(tmp_path / "data").num_items == NUM_ITEMS


def test_a_failure_halfway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(writer, "write_graph", fail)
    for output in (tmp_path / "data", (tmp_path / "remote").as_uri()):
        with pytest.raises(RunError, match="the data set could not be written: disk full"):
            write_dataset(output, **arguments())
    assert os.listdir(tmp_path) == []


def test_an_upload_that_breaks_off_is_not_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gnnmr_dist import storage

    copy_files, copied = storage.fs.copy_files, []

    def break_off(source: str, *rest: Any, **options: Any) -> None:
        if len(copied) == 9:
            raise OSError("connection lost")
        copied.append(source)
        copy_files(source, *rest, **options)

    monkeypatch.setattr(storage.fs, "copy_files", break_off)
    with pytest.raises(RunError, match="could not be written: connection lost"):
        write_dataset((tmp_path / "data").as_uri(), **arguments())
    assert len(copied) == 9
    with pytest.raises(InputError, match=r"manifest.json: expected a manifest, got nothing there"):
        open_dataset(tmp_path / "data")


def _twice(given: dict[str, Any]) -> None:
    table = given["splits"]["valid"]
    given["splits"]["valid"] = pa.concat_tables([table, table.slice(4, 1)])


def _with(given: dict[str, Any], position: int, **changes: Any) -> None:
    given["modalities"][position] = replace(given["modalities"][position], **changes)


def _code(given: dict[str, Any]) -> None:
    given["modalities"][2].values[5] = 4


def _infinite(given: dict[str, Any]) -> None:
    given["modalities"][0].values[6, 2] = np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_twice, r"valid.parquet, row 10: expected each user-item pair once, got user \d+, item \d+ again"),
        (
            lambda g: g["splits"].pop("test"),
            r"data: expected the splits train, valid, test, got train, valid",
        ),
        (
            lambda g: g["splits"].update(test=pairs([], [])),
            r"test.parquet: expected at least one interaction, got none",
        ),
        (
            lambda g: g["splits"].update(test=g["splits"]["train"].slice(0, 1)),
            r"test.parquet: expected no pair of train.parquet, got user \d+, item \d+",
        ),
        (
            lambda g: g["splits"].update(test=pairs([0, 12], [0, 0])),
            r"test.parquet, row 1: expected user in 0..11, got 12",
        ),
        (
            lambda g: g["splits"].update(test=pairs([0], [1], rating=[5])),
            r"test.parquet: expected columns user, item, timestamp, weight only, got \"rating\"",
        ),
        (
            lambda g: g.update(users=pa.table({"id": ["a", "b", "a"]})),
            r"row 2: expected each id once, got 'a'",
        ),
        (lambda g: g.update(modalities=[]), r"manifest.json: expected at least one modality, got none"),
        (
            lambda g: g["modalities"].append(g["modalities"][0]),
            r"expected each modality name once.*'text' again",
        ),
        (lambda g: _with(g, 0, name="../x"), r"expected a modality name of letters.*got '../x'"),
        (lambda g: _with(g, 0, kind="sparse"), r"expected modality 'text' of kind dense or .*got 'sparse'"),
        (
            lambda g: _with(g, 0, dim=7),
            r"text.arrow: expected values float16 or float32 \[10, 7\], got float32",
        ),
        (
            lambda g: _with(g, 0, values=g["modalities"][0].values.astype(float)),
            r"expected dense modality 'text' of dtype float16 or float32, got 'float64'",
        ),
        (
            lambda g: _with(g, 2, values=None),
            r"genre.arrow: expected values of category modality 'genre', got none",
        ),
        (lambda g: _with(g, 2, vocabulary=None), r"genre.vocabulary.parquet: expected 4 rows, got none"),
        (lambda g: _with(g, 2, vocabulary=["a"]), r"genre.vocabulary.parquet: expected 4 rows, got 1"),
        (lambda g: _with(g, 0, present=np.zeros(10, bool)), r"with a value for at least one.*got 10 missing"),
        (
            lambda g: _with(g, 3, present=np.arange(10) != 4),
            r"tags.arrow, row 4: expected no codes below a null",
        ),
        (_code, r"genre.arrow, row 5: expected a code in 0..3, got 4"),
        (_infinite, r"text.arrow, row 6: expected finite values, got inf in position 2"),
    ],
)
def test_bad_data_are_refused_and_nothing_is_written(change: Any, message: str, tmp_path: Path) -> None:
    given = arguments()
    change(given)
    with pytest.raises(InputError, match=message) as error:
        write_dataset(tmp_path / "data", **given)
    assert str(error.value).startswith(str(tmp_path / "data"))
    assert os.listdir(tmp_path) == []


def test_a_uri_is_named_as_given(tmp_path: Path) -> None:
    given = arguments()
    _code(given)
    uri = (tmp_path / "data").as_uri()
    with pytest.raises(InputError) as error:
        write_dataset(uri, **given)
    assert str(error.value) == f"{uri}/modalities/genre.arrow, row 5: expected a code in 0..3, got 4"


def test_a_bag_may_have_empty_rows_that_count_as_missing(tmp_path: Path) -> None:
    given = arguments()
    present = np.ones(NUM_ITEMS, bool)  # row 3 is said to be there but has no codes
    given["modalities"][3] = replace(given["modalities"][3], present=present)
    write_dataset(tmp_path / "data", **given)
    dataset = open_dataset(tmp_path / "data")
    assert dataset.modality("tags").missing == 1
    assert not dataset.features("tags").present[3]


def test_modality_data_is_frozen() -> None:
    data = ModalityData("x", "dense", 1, np.ones(1, bool))
    with pytest.raises(AttributeError):
        data.dim = 2  # type: ignore[misc]
