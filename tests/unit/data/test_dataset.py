"""Opening a data set: what it gives, what it copies and when it reads."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_dataset import NUM_ITEMS, NUM_USERS, arguments

from gnnmr_dist.data import dataset as dataset_module
from gnnmr_dist.data.dataset import BagTable, CategoryTable, Dataset, DenseTable, ModalityInfo, open_dataset
from gnnmr_dist.data.graph import build_graph
from gnnmr_dist.data.writer import ModalityData, write_dataset
from gnnmr_dist.errors import InputError


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("with blank %20") / "data"
    write_dataset(directory, **arguments())
    return directory


@pytest.fixture(scope="module")
def dataset(where: Path) -> Dataset:
    return open_dataset(where)


def test_counts_names_and_provenance(dataset: Dataset) -> None:
    assert (dataset.name, dataset.num_users, dataset.num_items) == ("small", NUM_USERS, NUM_ITEMS)
    assert [info.name for info in dataset.modalities] == ["text", "image", "genre", "tags"]
    assert dataset.modality("genre") == ModalityInfo("genre", "category", 4, "int32", 1)
    assert dataset.provenance == arguments()["provenance"]
    assert len(dataset.digest) == 64


def test_features_are_those_written(dataset: Dataset) -> None:
    given = {data.name: data for data in arguments()["modalities"]}
    present = np.arange(NUM_ITEMS) != 3
    for name, dtype in (("text", np.float32), ("image", np.float16)):
        table = dataset.features(name)
        assert isinstance(table, DenseTable)
        assert table.values.dtype == dtype
        np.testing.assert_array_equal(table.values, np.where(present[:, None], given[name].values, 0))
        np.testing.assert_array_equal(table.present, present)
    genre, tags = dataset.features("genre"), dataset.features("tags")
    assert isinstance(genre, CategoryTable)
    assert genre.codes.dtype == np.int32
    np.testing.assert_array_equal(genre.codes, given["genre"].values)
    np.testing.assert_array_equal(genre.present, present)
    assert isinstance(tags, BagTable)
    assert (tags.offsets.dtype, tags.codes.dtype) == (np.int64, np.int32)
    np.testing.assert_array_equal(tags.offsets, given["tags"].offsets)
    np.testing.assert_array_equal(tags.codes, given["tags"].codes)
    np.testing.assert_array_equal(tags.present, present)
    assert tags.num_rows == genre.num_rows == NUM_ITEMS
    assert dataset.vocabulary("tags") == ["v", "w", "x", "y", "z"]


def test_interactions_are_those_written(dataset: Dataset) -> None:
    for split, rows in (("train", 40), ("valid", 10), ("test", 10)):
        got, given = dataset.interactions(split), arguments()["splits"][split]
        order = np.lexsort((given["item"].to_numpy(), given["user"].to_numpy()))
        assert got.num_rows == rows
        assert got.timestamps is not None
        assert got.weights is not None
        for name, values, dtype in (
            ("user", got.users, np.int32),
            ("item", got.items, np.int32),
            ("timestamp", got.timestamps, np.int64),
            ("weight", got.weights, np.float32),
        ):
            assert values.dtype == dtype
            np.testing.assert_array_equal(values, given[name].to_numpy()[order])


def test_timestamps_and_weights_are_none_where_unknown(tmp_path: Path) -> None:
    given = arguments()
    given["splits"] = {split: table.select(["user", "item"]) for split, table in given["splits"].items()}
    write_dataset(tmp_path / "data", **given)
    train = open_dataset(tmp_path / "data").interactions("train")
    assert train.timestamps is None
    assert train.weights is None


def test_the_graph_is_that_of_train(dataset: Dataset) -> None:
    train = arguments()["splits"]["train"]
    graph = build_graph(train["user"].to_numpy(), train["item"].to_numpy(), NUM_USERS, NUM_ITEMS)
    np.testing.assert_array_equal(dataset.graph.indptr, graph.indptr)
    np.testing.assert_array_equal(dataset.graph.indices, graph.indices)


def test_ids_titles_and_look_ups(dataset: Dataset) -> None:
    assert dataset.user_ids[4] == "user 4"
    np.testing.assert_array_equal(dataset.item_ids, np.arange(NUM_ITEMS) + 100)
    assert dataset.item_titles[6:8] == ["Title 6", "107"]  # no title: the id
    np.testing.assert_array_equal(dataset.user_number(["user 11", "user 0"]), [11, 0])
    np.testing.assert_array_equal(dataset.item_number([109, 100, 109]), [9, 0, 9])
    np.testing.assert_array_equal(dataset.item_number(["109"]), [9])
    assert dataset.user_number([]).shape == (0,)
    with pytest.raises(InputError, match=r"users.parquet: expected a known user id, got 'nobody'"):
        dataset.user_number(["user 3", "nobody"])
    with pytest.raises(InputError, match=r"items.parquet: expected a known item id, got 99$"):
        dataset.item_number([99])


def test_without_titles_ids_stand_in(tmp_path: Path) -> None:
    given = arguments()
    given["items"] = given["items"].select(["id"])
    write_dataset(tmp_path / "data", **given)
    assert open_dataset(tmp_path / "data").item_titles[:2] == ["100", "101"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda d: d.features("audio"), "expected one of text, image, genre, tags, got 'audio'"),
        (lambda d: d.interactions("dev"), "expected one of train, valid, test, got 'dev'"),
        (lambda d: d.vocabulary("text"), "modality 'text': expected kind category or bag, got dense"),
        (lambda d: open_dataset(d.directory, verify="none"), 'expected "full" or "structure", got \'none\''),
    ],
)
def test_asking_for_what_is_not_there(dataset: Dataset, ask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(dataset)


def test_feature_values_are_the_mapped_file(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrays share memory with the mapping that open_features made, and Arrow allocates nothing."""
    mapped, memory_map = [], pa.memory_map

    def spy(path: str) -> Any:
        source = memory_map(path)
        mapped.append(np.frombuffer(source.read_buffer(source.size()), np.uint8))
        return source

    dataset = open_dataset(where, verify="structure")
    monkeypatch.setattr("gnnmr_dist.data.feature_tables.pa.memory_map", spy)
    for name, array in (("text", "values"), ("image", "values"), ("tags", "codes")):
        table = dataset.features(name)
        assert np.shares_memory(getattr(table, array), mapped[-1]), name
        assert not getattr(table, array).flags.writeable
    assert len(mapped) == 3


def test_opening_large_features_takes_no_memory(tmp_path: Path) -> None:
    """64 MB of features: opening costs under 1 MB of Arrow memory, and the values lie in the file's pages."""
    given = arguments()
    count = 1 << 14
    values = np.ones((count, 1024), np.float32)
    given["items"] = pa.table({"id": np.arange(count)})
    given["modalities"] = [ModalityData("big", "dense", 1024, np.ones(count, bool), values)]
    write_dataset(tmp_path / "data", **given)
    before = pa.total_allocated_bytes()
    table = open_dataset(tmp_path / "data", verify="structure").features("big")
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert isinstance(table, DenseTable)
    address = table.values.ctypes.data
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    holder = [
        fields
        for fields in ranges
        if int(fields[0].split("-")[0], 16) <= address < int(fields[0].split("-")[1], 16)
    ]
    assert holder[0][-1] == str(tmp_path / "data" / "modalities" / "big.arrow")
    assert holder[0][1].startswith("r-")
    assert table.values[count - 1, 1023] == 1


def test_nothing_is_read_before_it_is_asked_for(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = dataset_module.read_interactions
    features = dataset_module.open_features
    monkeypatch.setattr(dataset_module, "read_interactions", lambda *a: (opened.append(a[2]), read(*a))[1])
    monkeypatch.setattr(
        dataset_module, "open_features", lambda *a: (opened.append(a[1].name), features(*a))[1]
    )
    dataset = open_dataset(where)
    assert opened == []
    dataset.interactions("train")
    dataset.features("image")
    assert opened == ["train", "image"]


def test_the_structure_check_reads_no_bulk_data(where: Path, tmp_path: Path) -> None:
    """Test interactions made unreadable inside: opening by structure and reading train still works."""
    shutil.copytree(where, tmp_path / "data")
    file = tmp_path / "data" / "test.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(bytes(content))
    dataset = open_dataset(tmp_path / "data", verify="structure")
    assert dataset.interactions("train").num_rows == 40
    with pytest.raises(InputError, match=r"test.parquet: expected a sound Parquet file, got damaged pages"):
        dataset.interactions("test")
    with pytest.raises(InputError, match=r"test.parquet: expected sha256 \w{12}\.\.\., got \w{12}\.\.\."):
        open_dataset(tmp_path / "data")


def test_a_disk_that_fails_is_one_line(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_: str) -> bytes:
        raise PermissionError("permission denied")

    monkeypatch.setattr(dataset_module, "read_bytes", deny)
    with pytest.raises(InputError, match=r"data: expected a data set that can be read, got an error \(perm"):
        open_dataset(where)


def test_a_copy_for_another_process_carries_the_path_only(dataset: Dataset, where: Path) -> None:
    dataset.features("text")
    assert dataset.graph.num_edges == 40
    _, state = dataset.__reduce__()
    assert state == (str(where),)
    again = copy.copy(dataset)
    assert again is not dataset
    assert again.digest == dataset.digest
    assert again.directory == where


def test_relative_paths_stay_valid_elsewhere(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(where.parent)
    dataset = open_dataset("data")
    monkeypatch.chdir("/")
    assert copy.copy(dataset).interactions("valid").num_rows == 10


class TestRemote:
    """Through a file:// URI, which is treated as any remote file system."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("GNNMR_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_it_is_copied_once_and_then_mapped(self, cache: Path, tmp_path: Path) -> None:
        uri = (tmp_path / "far away").as_uri()
        digest = write_dataset(uri, **arguments())
        dataset = open_dataset(uri)
        assert dataset.directory == cache / digest
        assert dataset.path == uri
        assert dataset.features("text").present.sum() == 9
        stamp = (cache / digest / "train.parquet").stat().st_mtime_ns
        shutil.rmtree(tmp_path / "far away" / "modalities")  # the copy is enough from now on
        assert copy.copy(dataset).directory == cache / digest
        assert (cache / digest / "train.parquet").stat().st_mtime_ns == stamp
        assert sorted(os.listdir(cache)) == [digest, f"{digest}.lock"]

    def test_a_damaged_source_never_enters_the_cache(self, cache: Path, tmp_path: Path) -> None:
        digest = write_dataset(tmp_path / "data", **arguments())
        file = tmp_path / "data" / "modalities" / "text.arrow"
        content = bytearray(file.read_bytes())
        content[-300] ^= 1
        file.write_bytes(bytes(content))
        uri = (tmp_path / "data").as_uri()
        with pytest.raises(InputError, match=rf"^{uri}/modalities/text.arrow: expected sha256"):
            open_dataset(uri, verify="structure")
        assert os.listdir(cache) == [f"{digest}.lock"]

    def test_a_mended_manifest_replaces_the_cached_one(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", **arguments())
        uri = (tmp_path / "data").as_uri()
        assert open_dataset(uri).name == "small"
        manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
        (tmp_path / "data" / "manifest.json").write_text(json.dumps({**manifest, "name": "renamed"}))
        assert open_dataset(uri).name == "renamed"

    def test_nothing_there(self, tmp_path: Path) -> None:
        uri = (tmp_path / "absent").as_uri()
        with pytest.raises(InputError, match=r"absent/manifest.json: expected a manifest, got nothing there"):
            open_dataset(uri)

    def test_processes_may_open_at_once(self, cache: Path, tmp_path: Path) -> None:
        uri = (tmp_path / "data").as_uri()
        digest = write_dataset(uri, **arguments())
        program = (
            "import sys; from gnnmr_dist.data.dataset import open_dataset\n"
            "print(open_dataset(sys.argv[1], verify='structure').features('text').values.tobytes().hex())"
        )
        processes = [
            subprocess.Popen([sys.executable, "-c", program, uri], stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        outputs = {process.communicate(timeout=120)[0] for process in processes}
        assert [process.returncode for process in processes] == [0] * 4
        assert outputs == {f"{open_dataset(uri).features('text').values.tobytes().hex()}\n"}
        assert sorted(os.listdir(cache)) == [digest, f"{digest}.lock"]
