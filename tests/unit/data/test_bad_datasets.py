"""Every way in which a data set directory can be wrong, and the one line that says so.

The same cases make the table of docs/bad-inputs.md; ``GNNMR_UPDATE_DOCS=1 pytest FILE`` writes it anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_dataset import arguments

from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.format import FileInfo, files_digest, parse_manifest
from gnnmr_dist.data.writer import seal, write_dataset, write_features
from gnnmr_dist.errors import InputError

DOCS = Path(__file__).parents[3] / "docs" / "bad-inputs.md"
SECTION = "## Data set directory\n"

Break = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """``shallow``: verify="structure" finds it too. DATA stands for the directory, ... for a checksum."""

    what: str
    spoil: Break
    message: str
    shallow: bool = True


def edit(change: Callable[[dict[str, Any]], object], *, redigest: bool = False) -> Break:
    """Change the manifest's JSON."""

    def spoil(data: Path) -> None:
        content = json.loads((data / "manifest.json").read_text())
        change(content)
        if redigest:
            content["digest"] = files_digest({k: FileInfo(**v) for k, v in content["files"].items()})
        (data / "manifest.json").write_text(json.dumps(content))

    return spoil


def put(key: str, value: object) -> Break:
    return edit(lambda content: content.update({key: value}))


def modality(position: int, **changes: object) -> Break:
    return edit(lambda content: content["modalities"][position].update(changes))


def resealed(spoil: Break) -> Break:
    """A change of the files, with sizes, checksums and digest made to fit: only the content is wrong."""

    def both(data: Path) -> None:
        manifest = parse_manifest((data / "manifest.json").read_bytes(), "manifest.json")
        spoil(data)
        seal(data, manifest)

    return both


def parquet(name: str, change: Callable[[Any], Any]) -> Break:
    def spoil(data: Path) -> None:
        pq.write_table(change(pq.read_table(data / name)), data / name)

    return resealed(spoil)


def cell(name: str, column: str, row: int, value: object) -> Break:
    """Set one value of a Parquet file."""

    def change(table: Any) -> Any:
        values = table[column].to_pylist()
        values[row] = value
        return table.set_column(
            table.column_names.index(column), column, pa.array(values, table[column].type)
        )

    return parquet(name, change)


def arrow(name: str, change: Callable[[Any], Any], **options: Any) -> Break:
    """Replace a feature column; ``change`` gives an array, or a list of arrays for several batches."""

    def spoil(data: Path) -> None:
        file = data / "modalities" / f"{name}.arrow"
        with pa.OSFile(str(file), "rb") as source:
            column = pa.ipc.open_file(source.read_buffer()).get_batch(0).column(0)
        changed = change(column)
        write_features(file, changed if isinstance(changed, list) else [changed], **options)

    return resealed(spoil)


def value(row: int, new: object) -> Callable[[Any], Any]:
    """Set one row of an Arrow array."""

    def change(column: Any) -> Any:
        rows = column.to_pylist()
        rows[row] = new
        return pa.array(rows, column.type)

    return change


def renamed_column(data: Path) -> None:
    schema = pa.schema([("x", pa.int32())])
    with pa.ipc.new_file(str(data / "modalities" / "text.arrow"), schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([1], pa.int32())], schema=schema))


def filled_null(column: Any) -> Any:
    values = column.values.to_numpy().copy()
    values[3 * 6 : 4 * 6] = 1
    return pa.FixedSizeListArray.from_arrays(pa.array(values), 6, mask=column.is_null())


def null_over_codes(column: Any) -> Any:
    nulls = np.arange(10) == 4
    return pa.ListArray.from_arrays(column.offsets, column.values, mask=pa.array(nulls))


def disordered_offsets(column: Any) -> Any:
    offsets = column.offsets.to_numpy().copy()
    offsets[2] = 0
    buffers = [None, pa.py_buffer(offsets.tobytes())]
    return pa.Array.from_buffers(column.type, len(column), buffers, children=[column.values])


def graph(name: str, change: Callable[[np.ndarray], object]) -> Break:
    def spoil(data: Path) -> None:
        array = np.load(data / "graph" / f"{name}.npy")
        changed = change(array)
        np.save(data / "graph" / f"{name}.npy", array if changed is None else changed)

    return resealed(spoil)


def swapped(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


def swapped_users(array: np.ndarray) -> None:
    array[[-2, -1]] = array[[-1, -2]]


def moved_edge(array: np.ndarray) -> None:
    array[1] += 1


def damaged_pages(data: Path) -> None:
    content = bytearray((data / "train.parquet").read_bytes())
    content[4:200] = bytes(196)
    (data / "train.parquet").write_bytes(bytes(content))


def text_file(name: str) -> Break:
    return resealed(lambda data: (data / name).write_text("something else entirely"))


def replace_by_file(data: Path) -> None:
    shutil.rmtree(data)
    data.write_text("x")


def link_away(data: Path) -> None:
    file = data / "train.parquet"
    file.rename(data.parent / "elsewhere.parquet")
    file.symlink_to(data.parent / "elsewhere.parquet")


def flip_last_byte(data: Path) -> None:
    file = data / "graph" / "indices.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def overlap(data: Path) -> None:
    train, test = pq.read_table(data / "train.parquet"), pq.read_table(data / "test.parquet")
    pq.write_table(pa.concat_tables([train.slice(7, 1), test.slice(1)]), data / "test.parquet")


def repeated(table: Any) -> Any:
    return pa.concat_tables([table.slice(0, 9), table.slice(4, 1)])


MANIFEST_CASES = [
    Case("nothing there", shutil.rmtree, "DATA: expected a directory, got nothing there"),
    Case("a file instead of a directory", replace_by_file, "DATA: expected a directory, got a file"),
    Case(
        "no manifest (half-written)",
        lambda data: (data / "manifest.json").unlink(),
        "DATA/manifest.json: expected a manifest, got nothing there "
        "(no data set, or one that was never finished)",
    ),
    Case(
        "manifest is not JSON",
        lambda data: (data / "manifest.json").write_text("format: 1"),
        "DATA/manifest.json: expected JSON, got text that is not (Expecting value: line 1 column 1 (char 0))",
    ),
    Case(
        "manifest is not an object",
        lambda data: (data / "manifest.json").write_text("[]"),
        "DATA/manifest.json: expected a JSON object, got a list",
    ),
    Case("other format", put("format", 2), 'DATA/manifest.json: expected "format": 1, got 2'),
    Case(
        "key missing",
        edit(lambda content: content.pop("num_users")),
        'DATA/manifest.json: expected the manifest to have the key "num_users", got no such key',
    ),
    Case(
        "value of a wrong type",
        put("num_items", "10"),
        'DATA/manifest.json: expected "num_items" of the manifest to be an integer, got a string ("10")',
    ),
    Case(
        "number out of range",
        put("num_users", 0),
        'DATA/manifest.json: expected "num_users" of the manifest to be at least 1, got 0',
    ),
    Case(
        "more nodes than int32 can number",
        put("num_users", 2**31),
        "DATA/manifest.json: expected at most 2147483647 users and items, got 2147483658",
    ),
    Case(
        "a split missing",
        edit(lambda content: content["splits"].pop("valid")),
        'DATA/manifest.json: expected "splits" with the keys train, valid, test, got train, test',
    ),
    Case(
        "an empty split",
        edit(lambda content: content["splits"].update(valid=0)),
        'DATA/manifest.json: expected "valid" of "splits" to be at least 1, got 0',
    ),
    Case(
        "no modalities",
        put("modalities", []),
        "DATA/manifest.json: expected at least one modality, got none",
    ),
    Case(
        "modality is not an object",
        put("modalities", ["text"]),
        'DATA/manifest.json: expected "modalities" entry 0 to be an object, got a string ("text")',
    ),
    Case(
        "modality twice",
        modality(1, name="Text"),
        "DATA/manifest.json: expected each modality name once (in any case), got 'Text' again",
    ),
    Case(
        "modality name that leaves the directory",
        modality(0, name="../x"),
        "DATA/manifest.json: expected a modality name of letters, digits, '_', '-', '.', "
        "starting with a letter, digit or '_', got '../x'",
    ),
    Case(
        "modality name that is an absolute path",
        modality(0, name="/etc/x"),
        "DATA/manifest.json: expected a modality name of letters, digits, '_', '-', '.', "
        "starting with a letter, digit or '_', got '/etc/x'",
    ),
    Case(
        "unknown kind",
        modality(0, kind="sparse"),
        "DATA/manifest.json: expected modality 'text' of kind dense or category or bag, got 'sparse'",
    ),
    Case(
        "dtype not allowed",
        modality(0, dtype="float64"),
        "DATA/manifest.json: expected dense modality 'text' of dtype float16 or float32, got 'float64'",
    ),
    Case(
        "dim not positive",
        modality(0, dim=0),
        "DATA/manifest.json: expected modality 'text' of dim at least 1, got 0",
    ),
    Case(
        "all rows missing",
        modality(0, missing=10),
        "DATA/manifest.json: expected modality 'text' with a value for at least one of 10 items, "
        "got 10 missing",
    ),
    Case(
        "file not listed",
        edit(lambda content: content["files"].pop("graph/indptr.npy"), redigest=True),
        'DATA/manifest.json: expected "files" to list graph/indptr.npy, got no such entry',
    ),
    Case(
        "file outside the directory listed",
        edit(lambda c: c["files"].update({"../x": {"bytes": 1, "sha256": "0" * 64}}), redigest=True),
        "DATA/manifest.json: expected \"files\" to list only files of this data set, got '../x'",
    ),
    Case(
        "checksum malformed",
        edit(lambda content: content["files"]["train.parquet"].update(sha256="abc")),
        "DATA/manifest.json: expected \"files\" entry 'train.parquet' with a sha256 of 64 hexadecimal "
        "digits, got 'abc'",
    ),
    Case(
        "file entry is not an object",
        edit(lambda content: content["files"].update({"train.parquet": 7})),
        "DATA/manifest.json: expected \"files\" entry 'train.parquet' to be an object, got an integer (7)",
    ),
    Case(
        "digest does not match",
        put("digest", "0" * 64),
        "DATA/manifest.json: expected digest ... (of the files listed), got ...",
    ),
]

FILE_CASES = [
    Case(
        "file missing",
        lambda data: (data / "test.parquet").unlink(),
        "DATA/test.parquet: expected a file, got nothing there",
    ),
    Case(
        "link that leaves the directory",
        link_away,
        "DATA/train.parquet: expected a file inside the data set, got a link to PARENT/elsewhere.parquet",
    ),
    Case(
        "file truncated",
        lambda data: os.truncate(data / "graph" / "indices.npy", 300),
        "DATA/graph/indices.npy: expected 448 bytes, got 300",
    ),
    Case(
        "file changed, same size",
        flip_last_byte,
        "DATA/graph/indices.npy: expected sha256 ..., got ...",
        shallow=False,
    ),
    Case(
        "not Parquet",
        text_file("valid.parquet"),
        "DATA/valid.parquet: expected a Parquet file, got bytes of another or a damaged format",
    ),
    Case(
        "Parquet damaged inside",
        resealed(damaged_pages),
        "DATA/train.parquet: expected a sound Parquet file, got damaged pages",
        shallow=False,
    ),
    Case(
        "not Arrow",
        text_file("modalities/text.arrow"),
        "DATA/modalities/text.arrow: expected an Arrow IPC file, got bytes of another or a damaged format",
    ),
    Case(
        "not a NumPy array",
        text_file("graph/indptr.npy"),
        "DATA/graph/indptr.npy: expected a NumPy array, got bytes of another or a damaged format",
    ),
]

INTERACTION_CASES = [
    Case(
        "column missing",
        parquet("train.parquet", lambda table: table.drop_columns("item")),
        'DATA/train.parquet: expected a column "item", got user, timestamp, weight',
    ),
    Case(
        "column of a wrong type",
        parquet("train.parquet", lambda table: table.set_column(0, "user", table["user"].cast(pa.int64()))),
        'DATA/train.parquet: expected column "user" of type int32, got int64',
    ),
    Case(
        "column unknown",
        parquet("train.parquet", lambda table: table.append_column("rating", table["weight"])),
        'DATA/train.parquet: expected columns user, item, timestamp, weight only, got "rating"',
    ),
    Case(
        "fewer rows than promised",
        parquet("train.parquet", lambda table: table.slice(1)),
        "DATA/train.parquet: expected 40 rows, got 39",
    ),
    Case(
        "null",
        cell("valid.parquet", "user", 6, None),
        'DATA/valid.parquet, row 6: expected a value in column "user", got null',
        shallow=False,
    ),
    Case(
        "user out of range",
        cell("valid.parquet", "user", 6, 12),
        "DATA/valid.parquet, row 6: expected user in 0..11, got 12",
        shallow=False,
    ),
    Case(
        "item out of range",
        cell("test.parquet", "item", 2, -1),
        "DATA/test.parquet, row 2: expected item in 0..9, got -1",
        shallow=False,
    ),
    Case(
        "weight not finite",
        cell("train.parquet", "weight", 8, float("nan")),
        "DATA/train.parquet, row 8: expected a finite weight, got nan",
        shallow=False,
    ),
    Case(
        "pair twice in a split",
        parquet("valid.parquet", repeated),
        "DATA/valid.parquet, row 9: expected each user-item pair once, "
        "got user 5, item 5 again (first in row 4)",
        shallow=False,
    ),
    Case(
        "pair in two splits",
        resealed(overlap),
        "DATA/test.parquet: expected no pair of train.parquet, got user 1, item 6",
        shallow=False,
    ),
]

ID_CASES = [
    Case(
        "no ids",
        parquet("items.parquet", lambda table: table.drop_columns("id")),
        'DATA/items.parquet: expected a column "id", got title',
    ),
    Case(
        "ids of a wrong type",
        parquet("items.parquet", lambda table: table.set_column(0, "id", table["id"].cast(pa.float64()))),
        'DATA/items.parquet: expected column "id" of type string or int64, got double',
    ),
    Case(
        "titles of a wrong type",
        parquet("items.parquet", lambda table: table.set_column(1, "title", table["id"])),
        'DATA/items.parquet: expected column "title" of type string, got int64',
    ),
    Case(
        "more ids than promised",
        parquet("users.parquet", lambda table: pa.concat_tables([table, pa.table({"id": ["more"]})])),
        "DATA/users.parquet: expected 12 rows, got 13",
    ),
    Case(
        "id null",
        cell("users.parquet", "id", 5, None),
        "DATA/users.parquet, row 5: expected an id, got null",
        shallow=False,
    ),
    Case(
        "id twice",
        cell("users.parquet", "id", 5, "user 2"),
        "DATA/users.parquet, row 5: expected each id once, got 'user 2' again",
        shallow=False,
    ),
]

FEATURE_CASES = [
    Case(
        "features under another name",
        resealed(renamed_column),
        'DATA/modalities/text.arrow: expected one column "value", got x',
    ),
    Case(
        "rows missing",
        arrow("text", lambda column: column.slice(0, 9)),
        "DATA/modalities/text.arrow: expected 10 rows, got 9",
    ),
    Case(
        "wrong dim",
        arrow("text", lambda column: pa.FixedSizeListArray.from_arrays(column.values, 3)),
        'DATA/modalities/text.arrow: expected column "value" of type fixed_size_list<float>[6], '
        "got fixed_size_list<float>[3]",
    ),
    Case(
        "wrong dtype",
        arrow("image", lambda column: column.cast(pa.list_(pa.float32(), 6))),
        'DATA/modalities/image.arrow: expected column "value" of type fixed_size_list<halffloat>[6], '
        "got fixed_size_list<float>[6]",
    ),
    Case(
        "several record batches",
        arrow("text", lambda column: [column.slice(0, 5), column.slice(5)]),
        "DATA/modalities/text.arrow: expected exactly one record batch, got 2",
    ),
    Case(
        "compressed",
        arrow("text", filled_null, options=pa.ipc.IpcWriteOptions(compression="zstd")),
        "DATA/modalities/text.arrow: expected uncompressed buffers, got compressed ones",
    ),
    Case(
        "NaN",
        arrow("text", value(4, [0, 0, float("nan"), 0, 0, 0])),
        "DATA/modalities/text.arrow, row 4: expected finite values, got nan in position 2",
        shallow=False,
    ),
    Case(
        "infinite",
        arrow("image", value(9, [0, 0, 0, 0, 0, float("-inf")])),
        "DATA/modalities/image.arrow, row 9: expected finite values, got -inf in position 5",
        shallow=False,
    ),
    Case(
        "values where a row is missing",
        arrow("text", filled_null),
        "DATA/modalities/text.arrow, row 3: expected zeros below a null, got other values",
        shallow=False,
    ),
    Case(
        "more rows missing than promised",
        arrow("genre", value(0, None)),
        "DATA/modalities/genre.arrow: expected 1 missing rows, got 2",
        shallow=False,
    ),
    Case(
        "category code out of range",
        arrow("genre", value(6, 4)),
        "DATA/modalities/genre.arrow, row 6: expected a code in 0..3, got 4",
        shallow=False,
    ),
    Case(
        "bag code out of range",
        arrow("tags", value(6, [1, -3])),
        "DATA/modalities/tags.arrow, row 6: expected codes in 0..4, got -3",
        shallow=False,
    ),
    Case(
        "codes where a bag is missing",
        arrow("tags", null_over_codes),
        "DATA/modalities/tags.arrow, row 4: expected no codes below a null, got codes",
        shallow=False,
    ),
    Case(
        "null inside a dense row",
        arrow("text", value(4, [0, 0, 0, None, 0, 0])),
        "DATA/modalities/text.arrow, row 4: expected no null inside a row, got null",
    ),
    Case(
        "null inside a bag",
        arrow("tags", value(5, [1, None])),
        "DATA/modalities/tags.arrow, row 5: expected no null inside a row, got null",
    ),
    Case(
        "bag offsets out of order",
        arrow("tags", disordered_offsets),
        "DATA/modalities/tags.arrow, row 1: expected ascending offsets up to 18, got 0",
        shallow=False,
    ),
    Case(
        "vocabulary missing",
        lambda data: (data / "modalities" / "genre.vocabulary.parquet").unlink(),
        "DATA/modalities/genre.vocabulary.parquet: expected a file, got nothing there",
    ),
    Case(
        "vocabulary of another length",
        parquet("modalities/genre.vocabulary.parquet", lambda table: table.slice(1)),
        "DATA/modalities/genre.vocabulary.parquet: expected 4 rows, got 3",
    ),
    Case(
        "vocabulary of a wrong type",
        parquet("modalities/genre.vocabulary.parquet", lambda table: pa.table({"value": [1, 2, 3, 4]})),
        'DATA/modalities/genre.vocabulary.parquet: expected one column "value" of type string, '
        "got value: int64",
    ),
    Case(
        "vocabulary with a null",
        cell("modalities/genre.vocabulary.parquet", "value", 2, None),
        "DATA/modalities/genre.vocabulary.parquet, row 2: expected a value for every code, got null",
    ),
]

GRAPH_CASES = [
    Case(
        "graph of a wrong dtype",
        graph("indices", lambda array: array.astype(np.int64)),
        "DATA/graph/indices.npy: expected int32 [80], got int64 [80]",
    ),
    Case(
        "graph of a wrong shape",
        graph("indptr", lambda array: array[:-1]),
        "DATA/graph/indptr.npy: expected int64 [23], got int64 [22]",
    ),
    Case(
        "graph of other degrees",
        graph("indptr", moved_edge),
        "DATA/graph/indptr.npy, row 1: expected 4 (from train.parquet), got 5",
        shallow=False,
    ),
    Case(
        "graph of other pairs",
        graph("indices", swapped),
        "DATA/graph/indices.npy, row 0: expected 13 (from train.parquet), got 17",
        shallow=False,
    ),
    Case(
        "graph of other pairs on the items' side",
        graph("indices", swapped_users),
        "DATA/graph/indices.npy, row 78: expected 3 (from train.parquet), got 9",
        shallow=False,
    ),
]

CASES = MANIFEST_CASES + FILE_CASES + INTERACTION_CASES + ID_CASES + FEATURE_CASES + GRAPH_CASES


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sound") / "data"
    write_dataset(directory, **arguments())
    return directory


def message_of(data: Path, verify: Any) -> str:
    with pytest.raises(InputError) as error:
        open_dataset(data, verify=verify)
    message = str(error.value).replace(str(data), "DATA").replace(str(data.parent), "PARENT")
    return re.sub(r"[0-9a-f]{12}\.\.\.", "...", message)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_spoilt_data_set_is_refused_in_one_line(case: Case, sound: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(sound, data)
    open_dataset(data)
    case.spoil(data)
    assert message_of(data, "full") == case.message
    if case.shallow:
        assert message_of(data, "structure") == case.message
    else:
        open_dataset(data, verify="structure")


def section() -> str:
    lines = [
        "What `open_dataset` says of a directory that breaks a rule of [data-format.md](data-format.md): one",
        "line, exit code 2. DATA is the directory, PARENT the one around it, `...` the first twelve digits",
        'of a checksum. `verify="structure"` finds those marked `s`, `verify="full"` finds all.',
        "`tests/unit/data/test_bad_datasets.py` checks this table (`GNNMR_UPDATE_DOCS=1` rewrites it).",
        "",
        "| what is wrong | | message |",
        "|---|---|---|",
    ]
    lines += [f"| {case.what} | {'s' if case.shallow else ''} | `{case.message}` |" for case in CASES]
    return SECTION + "\n" + "\n".join(lines) + "\n"


def test_the_documented_messages_are_the_real_ones() -> None:
    text = DOCS.read_text(encoding="utf-8") if DOCS.exists() else "# Bad inputs and what is said of them\n\n"
    before, found, rest = text.partition(SECTION)
    _, heading, after = rest.partition("\n## ")
    if os.environ.get("GNNMR_UPDATE_DOCS"):
        DOCS.write_text(before + section() + heading + after, encoding="utf-8")
    else:
        expected = section().removeprefix(SECTION).strip()
        assert found, f"{DOCS} has no section {SECTION!r}"
        assert rest.partition("\n## ")[0].strip() == expected
