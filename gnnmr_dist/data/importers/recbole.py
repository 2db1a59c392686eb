"""RecBole atomic files (``NAME.inter``, ``NAME.item``, ``NAME.user``) as a recipe and a source.

Atomic files are tab-separated with a typed header, ``user_id:token<TAB>rating:float``; a sequence is one
field whose values stand apart by a blank (https://recbole.io/docs/user_guide/data/atomic_files.html).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gnnmr_dist.data.columns import first_row, float_column, plain
from gnnmr_dist.data.recipe import Recipe, parse_recipe
from gnnmr_dist.data.tables import Source
from gnnmr_dist.data.text_tables import FROM_TEXT, TextLayout, text_batches, text_header
from gnnmr_dist.errors import bad_input

TYPES = ("token", "token_seq", "float", "float_seq")
_PLAIN = TextLayout("\t", quotes=False)


def import_recbole(
    source: Source, settings: Mapping[str, Any], features: Sequence[tuple[str, str]] = ()
) -> tuple[Recipe, Source]:
    """The recipe of a directory of atomic files, and the source that knows how to read them.

    Item columns become modalities: token a category, token_seq a bag, float_seq vectors. ``features`` are
    (name, ``.npy`` file) with rows in the order of the ``.item`` file. ``settings`` holds recipe sections
    (``split``, ``filter``, and keys of ``interactions``) that atomic files do not speak of.

    Raises:
        InputError: no or several ``.inter`` files, a header without types, or values of another type.
    """
    name = dataset_name(source)
    present = [name + suffix for suffix in (".item", ".user") if name + suffix in source.names()]
    tables, kinds = {}, {}
    fields = _header(source, f"{name}.inter")
    for file in present:
        tables[file], kinds[file] = _atomic_table(source, file)
    recipe: dict[str, Any] = {"name": name, "split": settings["split"], "filter": settings["filter"]}
    recipe["interactions"] = {"file": f"{name}.inter", "user": "user_id", "item": "item_id"}
    optional = {"timestamp": "timestamp", "weight": "rating"}
    recipe["interactions"] |= {key: field for key, field in optional.items() if field in fields}
    recipe["interactions"] |= settings["interactions"]
    modalities: list[dict[str, Any]] = []
    if f"{name}.item" in tables:
        recipe["items"] = {"file": f"{name}.item", "id": "item_id"}
        modalities = _modalities(f"{name}.item", kinds[f"{name}.item"])
    if f"{name}.user" in tables:
        recipe["users"] = {"file": f"{name}.user", "id": "user_id", "catalogue": "interacted"}
    modalities += [{"name": modality, "kind": "dense", "file": file} for modality, file in features]
    if not modalities:
        raise bad_input(source.name, f"item features ({name}.item or --features)", "none")
    layouts = {f"{name}.inter": replace(_PLAIN, names=list(fields))}
    parsed = replace(source, tables=tables, layouts=layouts)
    return parse_recipe(recipe | {"modality": modalities}, source.name), parsed


def dataset_name(source: Source) -> str:
    """NAME of the one ``NAME.inter`` file of a directory.

    Raises:
        InputError: there is none, or more than one.
    """
    names = [name.removesuffix(".inter") for name in source.names() if name.endswith(".inter")]
    if len(names) != 1:
        got = ", ".join(f"{name}.inter" for name in names) or "none"
        raise bad_input(source.name, "one file NAME.inter", got)
    return names[0]


def _modalities(file: str, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for name, kind in kinds.items():
        if name == "item_id":
            continue
        if kind == "token":
            out.append({"name": name, "kind": "category", "column": name})
        elif kind == "token_seq":
            out.append({"name": name, "kind": "bag", "columns": [name]})
        elif kind == "float_seq":
            out.append({"name": name, "kind": "dense", "file": file, "id": "item_id", "vector": name})
    return out


def _header(source: Source, file: str) -> dict[str, str]:
    """The type of every column of an atomic file."""
    label = source.label(file)
    with source.read(file) as stream:
        header = text_header(stream, label, _PLAIN)
    kinds: dict[str, str] = {}
    for entry in header:
        name, _, kind = entry.partition(":")
        if kind not in TYPES or not name:
            raise bad_input(label, f"header fields NAME:TYPE with TYPE {', '.join(TYPES)}", repr(entry))
        kinds[name] = kind
    return kinds


def _atomic_table(source: Source, file: str) -> tuple[pa.Table, dict[str, str]]:
    """The table with plain column names, sequences as lists, and the type of every column."""
    label, kinds = source.label(file), _header(source, file)
    with source.read(file) as stream:
        batches = list(text_batches(stream, label, replace(_PLAIN, names=list(kinds))))
    empty = pa.table({name: pa.array([], pa.string()) for name in kinds}).replace_schema_metadata(FROM_TEXT)
    table = pa.concat_tables(batches or [empty])
    for position, (name, kind) in enumerate(kinds.items()):
        if kind.endswith("_seq"):
            table = table.set_column(position, name, _sequences(table, label, name, kind))
    return table.replace_schema_metadata(FROM_TEXT), kinds


def _sequences(table: pa.Table, file: str, name: str, kind: str) -> pa.ChunkedArray:
    text = pc.utf8_trim_whitespace(pc.fill_null(plain(table, name), ""))
    lists = pa.chunked_array([pc.split_pattern_regex(text, r"\s+").combine_chunks()])
    if kind == "token_seq":
        return lists
    if (row := first_row(pc.equal(text, ""))) is not None:
        raise bad_input(file, f"numbers in column {name!r}", "an empty field", row=row)
    flat = pa.table({name: pc.list_flatten(lists)})
    owner = np.asarray(pc.list_parent_indices(lists).to_numpy())
    values = float_column(flat, file, name, rows=owner)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(lists)))])
    return pa.chunked_array([pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))])
