"""Methods as settings: which layer wins, and that each is what its paper says."""

from __future__ import annotations

from typing import get_args

import pytest

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.config import ModelSettings, build
from gnnmr_dist.evaluation import ENSEMBLES
from gnnmr_dist.fusion import FUSED, LINEAR
from gnnmr_dist.presets import KEYWORDS, METHODS, PRESETS, RESERVED


def test_every_method_is_a_choice_and_makes_settings() -> None:
    assert set(METHODS) == set(get_args(ModelSettings.model_fields["method"].annotation))
    for name in METHODS:
        settings = build(("method", {"model": {"method": name}}))
        for section, table in METHODS[name].items():
            for key, value in table.items():
                assert getattr(getattr(settings, section), key) == value


def test_no_modality_may_have_the_name_of_a_row_or_a_keyword() -> None:
    assert set(RESERVED) == {*ENSEMBLES, LINEAR, FUSED, *CLOSED_FORM, *KEYWORDS}


def test_every_other_source_wins_over_the_method() -> None:
    first, last = {"model": {"temperature": 0.3}}, {"model": {"method": "lightgcn"}}
    settings = build(("preset", PRESETS["default"]), ("file", first), ("command line", last))
    assert (settings.model.temperature, settings.model.score) == (0.3, "dot")


def test_the_last_method_named_counts() -> None:
    layers = [(name, {"model": {"method": name}}) for name in ("lightgcn", "gat")]
    settings = build(*layers)
    assert (settings.model.method, settings.model.encoder) == ("gat", "gat")
    assert settings.model.members == ("id",)


def test_all_settings_there_and_back() -> None:
    settings = build(("method", {"model": {"method": "bpr-mf"}}))
    assert settings.sampling.num_neighbors == ()
    assert build(("checkpoint", settings.model_dump(mode="json"))) == settings


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gnnmr"])
def test_baselines_have_no_peers(method: str) -> None:
    settings = build(("method", {"model": {"method": method}}))
    assert len(settings.model.members) == 1
    assert settings.loss.distill_weight == 0
