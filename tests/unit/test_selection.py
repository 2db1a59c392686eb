"""Validation chooses, test is read once: nothing of fitting or choosing asks for the test split."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import planted

import gnnmr_dist as gnnmr
from gnnmr_dist.data.dataset import Dataset, Interactions
from gnnmr_dist.presets import METHODS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits whose interactions anyone asks for, on any open data set, from now on."""
    splits: list[str] = []
    original = Dataset.interactions

    def recorded(self: Dataset, split: str) -> Interactions:
        splits.append(split)
        return original(self, split)

    monkeypatch.setattr(Dataset, "interactions", recorded)
    return splits


@pytest.mark.parametrize("method", METHODS)
def test_fitting_never_asks_for_the_test_split(method: str, asked: list[str], tmp_path: Path) -> None:
    dataset = planted(tmp_path / "d", 2)
    asked.clear()
    run = gnnmr.fit(
        dataset, tmp_path / "run", method=method, epochs=2, valid_every=1, embedding_dim=8, learning_rate=0.01
    )
    assert set(asked) == {"valid"}
    run.evaluate("test", baselines=False)
    assert asked.count("test") == 1


def test_choosing_baselines_never_asks_for_the_test_split(asked: list[str], tmp_path: Path) -> None:
    run = gnnmr.fit(planted(tmp_path / "d", 2), tmp_path / "run", epochs=1, embedding_dim=8)
    asked.clear()
    run.evaluate("valid")
    assert set(asked) == {"valid"}
