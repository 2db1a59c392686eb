"""A recipe: how raw files become a data set; a small TOML file, checked before any data is read."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.presets import RESERVED

SPLITS = ("train", "valid", "test")


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ".." in parts:
        raise ValueError("a relative path inside the source")
    return path


def _sum_to_one(ratios: tuple[float, float, float]) -> tuple[float, float, float]:
    if abs(sum(ratios) - 1.0) > 1e-6:
        raise ValueError("train, valid and test ratios that sum to 1")
    return ratios


def _not_reserved(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"a name other than {', '.join(RESERVED)}")
    return name


SourcePath = Annotated[str, AfterValidator(_inside)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Ratios = Annotated[tuple[Share, Share, Share], Field(strict=False), AfterValidator(_sum_to_one)]
Count = Annotated[int, Field(ge=0)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
MODALITY_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
ModalityName = Annotated[str, Field(pattern=MODALITY_NAME, max_length=64), AfterValidator(_not_reserved)]


def _both_or_none(one: object) -> str:
    return "neither" if one is None else "both"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Interactions(_Section):
    """The table of interactions, one row per user-item pair."""

    file: SourcePath
    user: str = "user"
    item: str = "item"
    timestamp: str | None = None
    weight: str | None = None
    min_weight: float | None = None
    duplicates: Literal["error", "first", "last"] = "error"

    @model_validator(mode="after")
    def _threshold_needs_weight(self) -> Interactions:
        if self.min_weight is not None and self.weight is None:
            raise ValueError("`weight`, the column `min_weight` is a threshold of; got none")
        return self


class Filter(_Section):
    """Least number of interactions per user and per item, applied until both hold (``k_core`` sets both)."""

    k_core: Count = 0
    min_per_user: Count = 0
    min_per_item: Count = 0

    @property
    def user_core(self) -> int:
        """The larger of ``k_core`` and ``min_per_user``."""
        return max(self.k_core, self.min_per_user)

    @property
    def item_core(self) -> int:
        """The larger of ``k_core`` and ``min_per_item``."""
        return max(self.k_core, self.min_per_item)


class ColumnSplit(_Section):
    """The split stands in a column; ``train``, ``valid`` and ``test`` are its three values."""

    method: Literal["column"]
    column: str = "split"
    train: str | int = "train"
    valid: str | int = "valid"
    test: str | int = "test"


class RandomSplit(_Section):
    """Interactions drawn at random into the three parts."""

    method: Literal["random"]
    ratios: Ratios = (0.8, 0.1, 0.1)
    seed: Count = 0


class UserTimeSplit(_Section):
    """Each user's latest interactions held out: shares of the user's history, or ``leave`` per part."""

    method: Literal["user-time"]
    ratios: Ratios | None = None
    leave: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> UserTimeSplit:
        if (self.ratios is None) == (self.leave is None):
            raise ValueError("either `ratios` or `leave`; got " + _both_or_none(self.ratios))
        return self


class GlobalTimeSplit(_Section):
    """Two moments cut all interactions: shares of the rows, or the first ``[valid, test]`` timestamps."""

    method: Literal["global-time"]
    ratios: Ratios | None = None
    cuts: Annotated[tuple[int, int], Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> GlobalTimeSplit:
        if (self.ratios is None) == (self.cuts is None):
            raise ValueError("either `ratios` or `cuts`; got " + _both_or_none(self.ratios))
        if self.cuts is not None and self.cuts[0] >= self.cuts[1]:
            raise ValueError(f"`cuts` in ascending order; got {list(self.cuts)}")
        return self


class ColdItemsSplit(_Section):
    """A share of the items held out with all their interactions, half for valid and half for test."""

    method: Literal["cold-items"]
    share: Share = 0.2
    seed: Count = 0


Split = Annotated[
    ColumnSplit | RandomSplit | UserTimeSplit | GlobalTimeSplit | ColdItemsSplit,
    Field(discriminator="method"),
]


class Entities(_Section):
    """A table of users or of items; without ``id`` a row's number is its id."""

    file: SourcePath
    id: str | None = None
    title: str | None = None
    keep: Annotated[tuple[str, ...], Field(strict=False)] = ()
    catalogue: Literal["all", "interacted"] = "all"

    @model_validator(mode="after")
    def _free_names(self) -> Entities:
        taken = [name for name in self.keep if name in ("id", "title") or self.keep.count(name) > 1]
        if taken:
            raise ValueError(
                f"`keep` to name each column once, and none of them id or title (got {taken[0]!r})"
            )
        return self


class DenseModality(_Section):
    """Vectors: a ``.npy`` matrix, a table of ids and vectors, or a directory with one ``.npy`` per item."""

    kind: Literal["dense"]
    name: ModalityName
    file: SourcePath
    ids: SourcePath | None = None
    id: str = "id"
    vector: str = "vector"
    unknown_ids: Literal["error", "skip"] = "error"
    normalise: Literal["none", "l2", "standardise"] = "l2"
    zero_is_missing: bool = True
    dtype: Literal["float16", "float32"] = "float16"


class CategoryModality(_Section):
    """One column of the item table, one value per item."""

    kind: Literal["category"]
    name: ModalityName
    column: str
    min_count: Annotated[int, Field(ge=1)] = 1


class CategoriesModality(_Section):
    """Several category modalities at once: columns of the item table, or of an integer ``.npy`` matrix.

    ``names`` is a JSON list, or an object whose keys are the names, one per matrix column.
    """

    kind: Literal["categories"]
    columns: Names | None = None
    file: SourcePath | None = None
    names: SourcePath | None = None
    prefix: str = ""
    min_count: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _one_of_two(self) -> CategoriesModality:
        if (self.columns is None) != (self.file is not None and self.names is not None) or (
            self.columns is not None and (self.file is not None or self.names is not None)
        ):
            raise ValueError("either `columns`, or `file` with `names`; got another mixture")
        return self


class BagModality(_Section):
    """The set of values of one or several columns of the item table (lists, scalars or separated text)."""

    kind: Literal["bag"]
    name: ModalityName
    columns: Names
    separator: str | None = None
    min_count: Annotated[int, Field(ge=1)] = 1


Modality = Annotated[
    DenseModality | CategoryModality | CategoriesModality | BagModality, Field(discriminator="kind")
]


class Recipe(_Section):
    """A whole recipe, valid in itself; whether it fits the data is seen when the data is read."""

    name: ModalityName
    interactions: Interactions
    filter: Filter = Filter()
    split: Split
    items: Entities | None = None
    users: Entities | None = None
    modality: Annotated[tuple[Modality, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _names_once(self) -> Recipe:
        names = [m.name.casefold() for m in self.modality if not isinstance(m, CategoriesModality)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"every modality named once; got {name!r} twice")
        return self


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a TOML recipe.

    Raises:
        InputError: no such file, not TOML, an unknown key, a wrong type or a value out of range; the line
            names the file and the key.
    """
    try:
        with open(path, "rb") as file:
            raw = tomllib.load(file)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise bad_input(path, "a recipe (TOML file)", error.strerror) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise bad_input(path, "TOML", error) from None
    return parse_recipe(raw, path)


def parse_recipe(raw: dict[str, Any], path: str | os.PathLike[str]) -> Recipe:
    """Check a parsed recipe; ``path`` is only for messages.

    Raises:
        InputError: as :func:`load_recipe`, for the first fault found.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _one_line(error, path) from None


def _one_line(error: ValidationError, path: str | os.PathLike[str]) -> InputError:
    first = error.errors(include_url=False)[0]
    location = _key_path(first["loc"])
    got: object = repr(first["input"])
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        expected, got = "a known key", "an unknown one"
    elif first["type"] == "missing":
        expected, got = "a value", "nothing"
    elif first["type"] == "union_tag_not_found":
        expected, got = f"a key {first['ctx']['discriminator']}", "none"
    elif first["type"] == "union_tag_invalid":
        key = first["ctx"]["discriminator"].strip("'")
        expected, got = f"{key} one of {first['ctx']['expected_tags']}", repr(first["ctx"]["tag"])
    elif first["type"] == "string_pattern_mismatch":
        expected = "a name of letters, digits, '_' and '-', starting with a letter or digit"
    elif "; got " in expected:
        expected, got = expected.split("; got ", 1)
    place = f"{os.fspath(path)}, key {location}" if location else os.fspath(path)
    return bad_input(place, expected, got)


_TAGS = {
    "column",
    "random",
    "user-time",
    "global-time",
    "cold-items",
    "dense",
    "category",
    "categories",
    "bag",
}


def _key_path(location: Sequence[str | int]) -> str:
    """``('modality', 0, 'dense', 'file')`` as ``modality[0].file``: the tags of unions are no keys."""
    out = ""
    for depth, part in enumerate(location):
        if isinstance(part, int):
            out += f"[{part}]"
        elif not (part in _TAGS and _follows_union(location, depth)):
            out += f".{part}" if out else part
    return out


def _follows_union(location: Sequence[str | int], depth: int) -> bool:
    return (depth == 1 and location[0] == "split") or (depth == 2 and location[0] == "modality")
