"""Which networks there are: keywords, groups, IDs alone, names, and refusals in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from helpers import planted

from gnnmr_dist.config import ModelSettings
from gnnmr_dist.data.dataset import Dataset, ModalityInfo
from gnnmr_dist.errors import InputError
from gnnmr_dist.evaluation import presence_table
from gnnmr_dist.members import members_of
from gnnmr_dist.presets import READS_FEATURES


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return planted(tmp_path_factory.mktemp("members") / "d", 3, missing=0.3)  # text and image dense, category


def read(dataset: Dataset, *entries: str, method: str = "gnnmr") -> dict[str, list[str]]:
    found = members_of(dataset, ModelSettings(members=entries, method=method))  # type: ignore[arg-type]
    return {member.name: [info.name for info in member.modalities] for member in found}


def test_keywords_and_groups(dataset: Dataset) -> None:
    assert read(dataset, "each") == {"text": ["text"], "image": ["image"], "category": ["category"]}
    assert read(dataset, "dense", "fields", "id") == {
        "text": ["text"],
        "image": ["image"],
        "fields": ["category"],
        "id": [],
    }
    assert read(dataset, "all") == {"all": ["text", "image", "category"]}
    assert read(dataset, "image+category", "text") == {
        "image+category": ["image", "category"],
        "text": ["text"],
    }


def test_auto_keeps_few_fields_apart_and_groups_many(dataset: Dataset) -> None:
    assert read(dataset, "auto") == read(dataset, "each")
    fields = [ModalityInfo(f"field{k}", "bag" if k == 1 else "category", 3, "int32", 0) for k in range(5)]
    text = ModalityInfo("text", "dense", 4, "float32", 0)
    names = [info.name for info in fields]
    four = cast("Dataset", SimpleNamespace(modalities=[text, *fields[:4]]))
    assert list(read(four, "auto")) == ["text", *names[:4]]
    five = cast("Dataset", SimpleNamespace(modalities=[text, *fields]))
    assert read(five, "auto") == {"text": ["text"], "fields": names}
    without_text = cast("Dataset", SimpleNamespace(modalities=fields))
    assert read(without_text, "auto", "id") == {"fields": names, "id": []}


def test_a_baseline_bears_its_own_name(dataset: Dataset) -> None:
    assert read(dataset, "id", method="lightgcn") == {"lightgcn": []}
    assert read(dataset, "id", "text", method="lightgcn") == {"id": [], "text": ["text"]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [(("audio",), "'audio'"), (("text+audio",), r"'text\+audio'"), (("each", "text"), "'text' twice")],
)
def test_refused(dataset: Dataset, entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"^members: expected .*{message}"):
        read(dataset, *entries)


@pytest.mark.parametrize("method", READS_FEATURES)
def test_a_method_on_features_needs_some(dataset: Dataset, method: str) -> None:
    with pytest.raises(InputError, match=f"^members: expected modalities for method {method}, got id"):
        read(dataset, "id", method=method)


def test_no_modality_of_that_kind(tmp_path: Path) -> None:
    dense = planted(tmp_path / "d", 1)
    with pytest.raises(InputError, match="'fields', got none"):
        read(dense, "fields")


def test_presence_of_a_member_is_that_of_anything_it_reads(dataset: Dataset) -> None:
    members = members_of(dataset, ModelSettings(members=("each", "all", "id")))
    table = torch.from_numpy(presence_table(dataset, members))
    assert torch.equal(table[3], table[:3].any(dim=0))
    assert not bool(table[3].all())
    assert bool(table[4].all())
