"""Every class of bad input to ``prepare``: one line, exit code 2, nothing written; docs show the messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_files import ITEMS, csv_text, interaction_rows, write_source

from gnnmr_dist.cli import EXIT_BAD_INPUT, EXIT_OK, guarded
from gnnmr_dist.prepare import command

DOCS = Path(__file__).parents[2] / "docs" / "bad-inputs-prepare.md"
SOURCE = Path("source")
ARGUMENTS = ["--recipe", "recipe.toml", "--source", "source", "--output", "output"]
IMPORT_SPLIT = ["--split", "user-time", "--leave", "1"]


@dataclass(frozen=True)
class Case:
    """What is wrong, how to make it so (in the working directory), and the arguments of the command."""

    what: str
    spoil: Callable[[], object]
    arguments: tuple[str, ...] = tuple(ARGUMENTS)


def recipe(old: str, new: str) -> Callable[[], object]:
    def spoil() -> None:
        text = Path("recipe.toml").read_text()
        assert old in text
        Path("recipe.toml").write_text(text.replace(old, new, 1))

    return spoil


def field(row: int, column: int, value: str) -> Callable[[], object]:
    def spoil() -> None:
        rows = interaction_rows()
        rows[row][column] = value
        (SOURCE / "interactions.csv").write_text(csv_text(rows))

    return spoil


def text(file: str, content: str) -> Callable[[], object]:
    return lambda: (SOURCE / file).write_text(content)


def array(file: str, values: object, dtype: object = None) -> Callable[[], object]:
    return lambda: np.save(SOURCE / file, np.array(values, dtype))


def audio(items: list[object], vectors: list[object]) -> Callable[[], object]:
    return lambda: pq.write_table(pa.table({"item": items, "vector": vectors}), SOURCE / "audio.parquet")


def both(*spoils: Callable[[], object]) -> Callable[[], object]:
    return lambda: [spoil() for spoil in spoils]


def matrix(row: int, value: float) -> np.ndarray:
    values = np.ones((5, 4), np.float32)
    values[row, 1] = value
    return values


def pickled() -> None:
    with open(
        SOURCE / "text.npy", "wb"
    ) as file:  # NumPy's header of an object array: its body would be a pickle
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (5,)})
        file.write(b"\x80")


def parquet_interactions(**columns: list[object]) -> Callable[[], object]:
    def spoil() -> None:
        table = {"user": [1, 2, 3], "item": ["a", "b", "c"], "split": ["train", "valid", "test"]} | columns
        pq.write_table(pa.table(table), SOURCE / "interactions.parquet")
        recipe('"interactions.csv"\ntimestamp = "time"\nweight = "hours"', '"interactions.parquet"')()

    return spoil


def split(section: str, extra: str = "") -> Callable[[], object]:
    return recipe('method = "column"\n', section + extra)


RECIPE_CASES = [
    Case("no recipe file", lambda: os.remove("recipe.toml")),
    Case("recipe is not TOML", lambda: Path("recipe.toml").write_text("name = \n")),
    Case("unknown key", recipe('timestamp = "time"', 'time_stamp = "time"')),
    Case("missing section", recipe('[split]\nmethod = "column"\n', "")),
    Case("missing key", recipe('file = "interactions.csv"\n', "")),
    Case("wrong type", recipe('timestamp = "time"', "timestamp = 3")),
    Case("value out of range", recipe("[split]", "[filter]\nk_core = -1\n[split]")),
    Case("unknown split method", split('method = "stratified"\n')),
    Case("split without method", split("")),
    Case("split ratios do not sum to 1", split('method = "random"\nratios = [0.8, 0.1, 0.2]\n')),
    Case("two ways to split by time", split('method = "user-time"\nleave = 1\nratios = [0.8, 0.1, 0.1]\n')),
    Case("cuts out of order", split('method = "global-time"\ncuts = [120, 110]\n')),
    Case("threshold without weight", recipe('weight = "hours"', "min_weight = 1.0")),
    Case("path outside the source", recipe('"text.npy"', '"../text.npy"')),
    Case("absolute path", recipe('"text.npy"', '"/data/text.npy"')),
    Case("modality named twice", recipe('name = "genre"', 'name = "Text"')),
    Case("modality named twice by `categories`", text("codes.json", '["sector", "text"]')),
    Case("modality named as a row of the results", recipe('name = "genre"', 'name = "fused"')),
    Case("the same by `categories`", text("codes.json", '["sector", "id"]')),
    Case("illegal modality name", recipe('name = "genre"', 'name = "gen/re"')),
    Case("unknown kind of modality", recipe('kind = "bag"', 'kind = "sparse"')),
    Case("no modality", lambda: recipe(Path("recipe.toml").read_text().split("title = ")[1], '"title"\n')()),
    Case("`categories` told half", recipe('names = "codes.json"\n', "")),
    Case("`keep` repeats the id", recipe('title = "title"', 'title = "title"\nkeep = ["id"]')),
    Case(
        "time split without timestamp",
        both(split('method = "user-time"\nleave = 1\n'), recipe('timestamp = "time"\n', "")),
    ),
]

TABLE_CASES = [
    Case("no source directory", lambda: os.rename("source", "elsewhere")),
    Case("no such file", lambda: os.remove("source/interactions.csv")),
    Case(
        "directory instead of a file",
        both(lambda: os.remove("source/interactions.csv"), lambda: os.mkdir("source/interactions.csv")),
    ),
    Case(
        "not Parquet",
        both(
            recipe('"interactions.csv"', '"interactions.parquet"'),
            text("interactions.parquet", "user,item\n1,2\n"),
        ),
    ),
    Case(
        "unknown kind of file",
        both(
            recipe('"interactions.csv"', '"interactions.xlsx"'), text("interactions.xlsx", "user,item\n1,2\n")
        ),
    ),
    Case(
        "not UTF-8",
        lambda: Path("source/interactions.csv").write_bytes(
            b"user,item,hours,time,split\nu\xff,a,1,1,train\n"
        ),
    ),
    Case("row with too many fields", field(3, 4, "valid,extra")),
    Case("header repeats a column", text("items.csv", "item,item,title\na,b,c\n")),
    Case("empty file", text("interactions.csv", "")),
    Case("empty table", text("interactions.csv", "user,item,hours,time,split\n")),
    Case("no such column", recipe('timestamp = "time"', 'timestamp = "when"')),
    Case("null id", field(4, 0, "")),
    Case("id of another type", parquet_interactions(user=[1.5, 2.0, 3.0])),
    Case("weight is not a number", field(7, 2, "many")),
    Case("weight is not finite", field(7, 2, "inf")),
    Case("weight is missing", field(7, 2, "")),
    Case("timestamp is not a number", field(2, 3, "yesterday")),
    Case("timestamp is missing", both(recipe('weight = "hours"\n', ""), field(2, 3, ""))),
    Case("duplicate pair", both(field(1, 0, "u0"), field(1, 1, "a"))),
    Case("unknown value in the split column", field(5, 4, "dev")),
    Case("null in the split column", field(5, 4, "")),
    Case(
        "split left empty",
        lambda: (SOURCE / "interactions.csv").write_text(
            csv_text([[*row[:4], row[4].replace("test", "train")] for row in interaction_rows()])
        ),
    ),
    Case(
        "random split left empty",
        both(parquet_interactions(), split('method = "random"\nratios = [0.9, 0.05, 0.05]\n')),
    ),
    Case("too few cold items", split('method = "cold-items"\nshare = 0.1\n')),
    Case("cut after the last timestamp", split('method = "global-time"\ncuts = [110, 999]\n')),
    Case("item unknown to the item table", field(6, 1, "z")),
    Case(
        "user unknown to the user table",
        both(
            text("users.csv", "user\nu0\nu1\n"),
            recipe("[items]", '[users]\nfile = "users.csv"\nid = "user"\n[items]'),
        ),
    ),
    Case("duplicate id in the item table", text("items.csv", ITEMS.replace("\nd,", "\na,"))),
    Case("null id in the item table", text("items.csv", ITEMS.replace("\nd,", "\n,"))),
    Case("nothing above the threshold", recipe('weight = "hours"', 'weight = "hours"\nmin_weight = 99')),
    Case("k-core leaves nothing", recipe("[split]", "[filter]\nk_core = 9\n[split]")),
    Case("output exists", lambda: [os.mkdir("output"), Path("output/precious").touch()]),
    Case("output a file", Path("output").touch),
    Case("output below a file", Path("output").touch, (*ARGUMENTS[:5], "output/below")),
    Case("output inside the source", lambda: None, (*ARGUMENTS[:5], "source/output")),
]

FEATURE_CASES = [
    Case("fewer feature rows than items", array("text.npy", np.ones((4, 4)))),
    Case("features are not a matrix", array("text.npy", np.ones((5, 2, 2)))),
    Case("features of dim 0", array("text.npy", np.ones((5, 0)))),
    Case("features are not numbers", array("text.npy", [["x"]] * 5)),
    Case("Python objects", pickled),
    Case("not an .npy file", text("text.npy", "1,2,3\n")),
    Case("truncated .npy file", lambda: os.truncate("source/text.npy", 140)),
    Case("NaN in features", array("text.npy", matrix(3, np.nan))),
    Case("infinity in features", array("text.npy", matrix(4, np.inf))),
    Case(
        "number too large for float16",
        both(array("text.npy", matrix(1, 1e6)), recipe('"text.npy"', '"text.npy"\nnormalise = "none"')),
    ),
    Case("all rows missing", array("text.npy", np.zeros((5, 4)))),
    Case(
        "matrix without item table or ids",
        both(recipe('[items]\nfile = "items.csv"\nid = "item"\ntitle = "title"\n', "")),
    ),
    Case(
        "ids and matrix of different length",
        both(array("ids.npy", ["a", "b"]), recipe('"text.npy"', '"text.npy"\nids = "ids.npy"')),
    ),
    Case("features of an unknown item", audio(["e", "q"], [[1.0], [2.0]])),
    Case("features of an item twice", audio(["e", "e"], [[1.0], [2.0]])),
    Case("vectors of varying length", audio(["e", "a", "b"], [[1.0, 2.0], [3.0, 4.0], [5.0]])),
    Case("null vector", audio(["e", "a"], [[1.0], None])),
    Case("null inside a vector", audio(["e", "a"], [[1.0, 2.0], [None, 3.0]])),
    Case("vector column holds no vectors", audio(["e", "a"], [1.0, 2.0])),
    Case("one item's .npy of another dim", array("image/b.npy", [1.0, 2.0])),
    Case("empty directory of features", lambda: [os.remove(f"source/image/{i}.npy") for i in "abd"]),
    Case(
        "category codes are not whole",
        both(
            parquet_interactions(),
            recipe('"items.csv"', '"items.parquet"'),
            lambda: pq.write_table(
                pa.table(
                    {"item": list("abcde"), "title": list("abcde"), "genre": [1.0, 2.0, 2.5, None, 1.0]}
                ),
                SOURCE / "items.parquet",
            ),
            recipe(
                'name = "tags"\nkind = "bag"\ncolumns = ["tags"]\nseparator = "|"',
                'name = "tags"\nkind = "bag"\ncolumns = ["title"]',
            ),
        ),
    ),
    Case("category column all missing", text("items.csv", ITEMS.replace("rpg", "").replace("shooter", "-1"))),
    Case("no value frequent enough", recipe('separator = "|"', 'separator = "|"\nmin_count = 4')),
    Case("code matrix is not of integers", array("codes.npy", np.ones((5, 2), np.float32))),
    Case("code below -1", array("codes.npy", [[0, 0], [0, 0], [0, -2], [0, 0], [0, 0]])),
    Case("names do not fit the code matrix", text("codes.json", '["sector"]')),
    Case("illegal name of a code column", text("codes.json", '["sector", "coun/try"]')),
    Case("names are not JSON", text("codes.json", "sector, country")),
]


def inter(header: str, *rows: str, name: str = "small.inter") -> Callable[[], object]:
    content = "\n".join([header, *rows]) + "\n"
    return text(name, content.replace(" ", "\t"))


RECBOLE = ("--recbole", "source", "--output", "output")
MMREC = ("--mmrec", "source", "--output", "output")
TYPED = "user_id:token item_id:token timestamp:float"
ITEM_FILE = inter("item_id:token class:token", "a x", "b y", "c x", name="small.item")
LABELLED = "userID itemID x_label"
IMAGE = array("image_feat.npy", np.ones((3, 2)))

IMPORT_CASES = [
    Case("no .inter file", lambda: None, RECBOLE),
    Case("two .inter files", both(inter(TYPED), inter(TYPED, name="b.inter")), RECBOLE),
    Case("header without types", inter("user_id item_id", "1 2"), RECBOLE),
    Case("unknown type", inter("user_id:token item_id:int", "1 2"), RECBOLE),
    Case("nothing known of the items", inter(TYPED, "1 a 1"), RECBOLE),
    Case(
        "float_seq holds text",
        both(inter(TYPED, "1 a 1"), text("small.item", "item_id:token\tv:float_seq\na\t1 2\nb\t1 x\n")),
        RECBOLE,
    ),
    Case(
        "float_seq of varying length",
        both(
            inter(TYPED, *(f"{user} a 1" for user in range(10))),
            text("small.item", "item_id:token\tv:float_seq\na\t1 2\nb\t1\n"),
        ),
        RECBOLE,
    ),
    Case("interaction with an unknown item", both(inter(TYPED, "1 a 1", "2 z 1"), ITEM_FILE), RECBOLE),
    Case(
        "users too small to leave any out",
        both(inter(TYPED, "1 a 1", "2 b 1"), ITEM_FILE),
        (*RECBOLE, *IMPORT_SPLIT),
    ),
    Case("options that do not go together", inter(TYPED), (*RECBOLE, "--source", "source")),
    Case("no feature file", inter(LABELLED, "0 0 0"), MMREC),
    Case("x_label outside 0..2", both(inter(LABELLED, "0 0 0", "0 1 3"), IMAGE), MMREC),
    Case("itemID beyond the feature rows", both(inter(LABELLED, "0 0 0", "0 3 1"), IMAGE), MMREC),
    Case(
        "feature files of different length",
        both(inter(LABELLED, "0 0 0"), IMAGE, array("text_feat.npy", np.ones((2, 2)))),
        MMREC,
    ),
    Case("itemID is not a number", both(inter(LABELLED, "0 0 0", "0 b 1"), IMAGE), MMREC),
    Case("no x_label", both(inter("userID itemID", "0 0"), IMAGE), MMREC),
]

GROUPS = {
    "Recipe": RECIPE_CASES,
    "Tables and splits": TABLE_CASES,
    "Features": FEATURE_CASES,
    "RecBole and MMRec directories": IMPORT_CASES,
}
CASES = [case for cases in GROUPS.values() for case in cases]


def message_of(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of one case, checked: exit code 2, one line, and no trace of an output."""
    write_source(folder)
    case.spoil()
    before = sorted(str(path) for path in folder.rglob("*"))
    assert guarded(command, list(case.arguments)) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert sorted(str(path) for path in folder.rglob("*")) == before
    return captured.err.removeprefix("error: ").strip()


def test_the_source_the_cases_spoil_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_source(tmp_path)
    assert guarded(command, ARGUMENTS) == EXIT_OK
    assert "18 interactions" in capsys.readouterr().out


def test_messages_are_those_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "# Bad input to `prepare`, and what it says",
        "",
        "Each is one line on standard error, exit code 2, and nothing is written. Rows count from 0, headers",
        "apart. `tests/unit/test_prepare_bad_inputs.py` makes every fault and compares this page with the",
        "messages (`GNNMR_UPDATE_DOCS=1` rewrites the page).",
    ]
    for title, cases in GROUPS.items():
        lines += ["", f"## {title}", "", "| what is wrong | message |", "|---|---|"]
        for number, case in enumerate(cases):
            folder = tmp_path / f"{title.split()[0]}{number}"
            folder.mkdir()
            monkeypatch.chdir(folder)
            message = message_of(case, folder, capsys).replace("|", "\\|")
            lines.append(f"| {case.what} | `{message}` |")
    page = "\n".join(lines) + "\n"
    if os.environ.get("GNNMR_UPDATE_DOCS"):
        DOCS.write_text(page, encoding="utf-8")
    assert page == DOCS.read_text(encoding="utf-8")


def test_cases_are_many_and_named_once() -> None:
    names = [case.what for case in CASES]
    assert len(names) == len(set(names)) >= 30
