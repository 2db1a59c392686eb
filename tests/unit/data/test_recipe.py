from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gnnmr_dist.data.recipe import CategoriesModality, load_recipe, parse_recipe
from gnnmr_dist.errors import InputError

RECIPES = sorted((Path(__file__).parents[3] / "benchmarks" / "datasets").glob("*.toml"))


def raw(**changes: Any) -> dict[str, Any]:
    recipe = {
        "name": "x",
        "interactions": {"file": "a.csv"},
        "split": {"method": "random"},
        "modality": [{"name": "text", "kind": "dense", "file": "text.npy"}],
    }
    return recipe | changes


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_of_the_project_are_valid_and_filter_nothing(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem
    assert recipe.filter.user_core == recipe.filter.item_core == 0
    assert recipe.interactions.min_weight is None


def test_there_are_recipes_to_check() -> None:
    assert {"steam200k", "se_funds_2022q4", "ml100k"} <= {file.stem for file in RECIPES}


def test_defaults() -> None:
    recipe = parse_recipe(raw(), "r.toml")
    assert recipe.split.method == "random"
    assert recipe.split.ratios == (0.8, 0.1, 0.1)
    assert recipe.interactions.duplicates == "error"


def test_a_core_is_the_larger_of_its_two_settings() -> None:
    recipe = parse_recipe(raw(filter={"k_core": 3, "min_per_item": 5}), "r.toml")
    assert (recipe.filter.user_core, recipe.filter.item_core) == (3, 5)


def test_whole_numbers_are_good_ratios_only_if_in_range() -> None:
    with pytest.raises(InputError, match=r"r.toml, key split.ratios\[0\]: expected less than 1, got 1"):
        parse_recipe(raw(split={"method": "random", "ratios": [1, 0, 0]}), "r.toml")


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(raw(), "r.toml").name = "y"


def test_modalities_of_one_file_need_no_name() -> None:
    modality = parse_recipe(raw(modality=[{"kind": "categories", "columns": ["a", "b"]}]), "r").modality[0]
    assert isinstance(modality, CategoriesModality)
    assert modality.columns == ("a", "b")


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "", "a\\b"])
def test_paths_stay_inside_the_source(path: str) -> None:
    with pytest.raises(InputError, match="inside the source"):
        parse_recipe(raw(interactions={"file": path}), "r.toml")


@pytest.mark.parametrize("name", ["fused", "fields", "id", "concatenation"])
def test_a_name_that_means_something_else_later_is_refused_now(name: str) -> None:
    with pytest.raises(InputError, match=f"a name other than concatenation, .*got '{name}'"):
        parse_recipe(raw(modality=[{"name": name, "kind": "category", "column": "a"}]), "r.toml")


def test_recipes_of_the_documentation_are_valid() -> None:
    page = (Path(__file__).parents[3] / "docs" / "prepare.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    names = [parse_recipe(tomllib.loads(example), "docs/prepare.md").name for example in examples]
    assert names == ["games", "shop"]
