"""A data directory of the MMRec toolbox as a recipe and a source.

``NAME.inter`` is tab-separated with the columns userID, itemID, x_label (0 train, 1 valid, 2 test) and maybe
rating and timestamp; row i of ``text_feat.npy``, ``image_feat.npy`` or any other ``*_feat.npy`` is item i
(https://github.com/enoche/MMRec).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from gnnmr_dist.data.columns import first_row, id_values, settled_ids
from gnnmr_dist.data.importers.recbole import dataset_name
from gnnmr_dist.data.recipe import Recipe, parse_recipe
from gnnmr_dist.data.tables import Source
from gnnmr_dist.data.text_tables import TextLayout, text_header
from gnnmr_dist.errors import bad_input

_ENDING = "_feat.npy"
_ITEMS = "items"


def import_mmrec(source: Source, settings: Mapping[str, Any]) -> tuple[Recipe, Source]:
    """The recipe of an MMRec directory, and the source that knows how to read it.

    The catalogue is the rows of the feature files. ``settings`` holds the recipe sections ``filter`` and keys
    of ``interactions``; the split is that of ``x_label``.

    Raises:
        InputError: no or several ``.inter`` files, no feature file, feature files of different length, or an
            item number without a row.
    """
    name = dataset_name(source)
    file, layout = f"{name}.inter", TextLayout("\t", quotes=False)
    with source.read(file) as stream:
        header = text_header(stream, source.label(file), layout)
    features = [entry for entry in source.names() if entry.endswith(_ENDING) and entry != _ENDING]
    if not features:
        raise bad_input(source.name, f"at least one file NAME{_ENDING}", "none")
    num_items = _common_rows(source, features)
    optional = {"timestamp": "timestamp", "weight": "rating"}
    recipe: dict[str, Any] = {
        "name": name,
        "interactions": {"file": file, "user": "userID", "item": "itemID"}
        | {key: column for key, column in optional.items() if column in header}
        | settings["interactions"],
        "filter": settings["filter"],
        "split": {"method": "column", "column": "x_label", "train": 0, "valid": 1, "test": 2},
        "items": {"file": _ITEMS},
        "modality": [{"name": f.removesuffix(_ENDING), "kind": "dense", "file": f} for f in features],
    }
    items = pa.table({"itemID": pa.array(np.arange(num_items))})
    parsed = replace(source, tables={_ITEMS: items}, layouts={file: layout})
    _check_item_numbers(parsed, file, features[0], num_items)
    return parse_recipe(recipe, source.name), parsed


def _common_rows(source: Source, features: list[str]) -> int:
    rows = [source.array(file).shape[:1] for file in features]
    for file, count in zip(features, rows, strict=True):
        if count != rows[0] or not count:
            expected = f"{rows[0][0] if rows[0] else 'some'} rows, as in {features[0]}"
            raise bad_input(source.label(file), expected, count[0] if count else "a single number")
    return int(rows[0][0])


def _check_item_numbers(source: Source, file: str, feature: str, num_items: int) -> None:
    label, first = source.label(file), 0
    for table in source.batches(file, ["itemID"]):
        rows = range(first, first + table.num_rows)
        first = rows.stop
        ids = settled_ids(id_values(table, label, "itemID", rows), from_text=True)
        if not pa.types.is_integer(ids.type):
            raise bad_input(label, "whole numbers in column 'itemID'", "text")
        values = np.asarray(ids.to_numpy())
        if (row := first_row((values < 0) | (values >= num_items))) is not None:
            expected = f"itemID in 0..{num_items - 1} (the rows of {feature})"
            raise bad_input(label, expected, values[row], row=rows[row])
