"""A small source directory (6 users, 5 items, 18 interactions) and its recipe, to use or to break."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RECIPE = """\
name = "small"

[interactions]
file = "interactions.csv"
timestamp = "time"
weight = "hours"

[split]
method = "column"

[items]
file = "items.csv"
id = "item"
title = "title"

[[modality]]
name = "text"
kind = "dense"
file = "text.npy"

[[modality]]
name = "genre"
kind = "category"
column = "genre"

[[modality]]
name = "tags"
kind = "bag"
columns = ["tags"]
separator = "|"

[[modality]]
kind = "categories"
file = "codes.npy"
names = "codes.json"

[[modality]]
name = "image"
kind = "dense"
file = "image"

[[modality]]
name = "audio"
kind = "dense"
file = "audio.parquet"
id = "item"
"""

ITEMS = """\
item,title,genre,tags
a,Alpha,rpg,slow|deep
b,Beta,,deep
c,"Gamma, the third",rpg,
d,Delta,shooter,fast|loud|fast
e,Epsilon,shooter,slow
"""


def interaction_rows() -> list[list[str]]:
    """user, item, hours, time, split; every split has rows."""
    rows = []
    for user in range(6):
        for step in range(3):
            item = "abcde"[(user + step * 2) % 5]
            split = ("train", "valid" if user % 2 else "test")[step == 2]
            rows.append([f"u{user}", item, f"{user}.5", str(100 + 10 * step + user), split])
    return rows


def csv_text(rows: list[list[str]], header: str = "user,item,hours,time,split") -> str:
    """Rows as CSV text."""
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def write_source(folder: Path) -> None:
    """``recipe.toml`` and the directory ``source`` inside ``folder``."""
    source = folder / "source"
    (source / "image").mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    (source / "interactions.csv").write_text(csv_text(interaction_rows()))
    (source / "items.csv").write_text(ITEMS)
    text = np.arange(20, dtype=np.float32).reshape(5, 4)
    text[2] = 0.0
    np.save(source / "text.npy", text)
    np.save(source / "codes.npy", np.array([[0, 1], [1, -1], [-1, 0], [2, 1], [0, 1]], np.int16))
    (source / "codes.json").write_text(json.dumps(["sector", "country"]))
    for item in "abd":
        np.save(source / "image" / f"{item}.npy", np.full(3, ord(item), np.float32))
    vectors = [[1.0, 2.0], [3.0, 4.0]]
    pq.write_table(pa.table({"item": ["e", "a"], "vector": vectors}), source / "audio.parquet")
