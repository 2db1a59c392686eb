"""Settings: what is refused and how, layers, presets, and TOML there and back for every field."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.config import Settings, build, fields, read_toml, to_toml
from gnnmr_dist.errors import InputError
from gnnmr_dist.presets import PRESETS, preset

FIELDS = sorted(fields().items())


def nested(name: str, value: Any) -> dict[str, dict[str, Any]]:
    return {fields()[name][0]: {name: value}}


def value_of(settings: Settings, name: str) -> Any:
    return getattr(getattr(settings, fields()[name][0]), name)


def refused(values: dict[str, Any], *parts: str) -> str:
    with pytest.raises(InputError) as caught:
        build(("file.toml", values))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("file.toml", *parts):
        assert part in message
    return message


def legal_values(name: str, field: Any) -> st.SearchStrategy[Any]:
    kind = field.annotation
    if kind is bool:
        return st.booleans()
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if name == "num_neighbors":
        return st.lists(st.sampled_from([-1, 1, 5, 100]), min_size=1, max_size=8).map(tuple)
    if name == "ks":
        return st.lists(st.integers(1, 500), max_size=4, unique=True).map(lambda ks: tuple({20, *ks}))
    if name == "members":
        return st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1).map(tuple)
    if name == "trackers":
        return st.lists(st.sampled_from(["tensorboard", "mlflow", "wandb"]), unique=True).map(tuple)
    if name == "experiment":
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    if name == "select_metric":
        return st.sampled_from(["Recall@20", "NDCG@20", "MRR@20"])
    if kind is str:
        return st.text(st.characters(exclude_categories=["Cs"]))
    low = next((getattr(m, a) for m in field.metadata for a in ("ge", "gt") if hasattr(m, a)), None)
    high = next((getattr(m, a) for m in field.metadata for a in ("le", "lt") if hasattr(m, a)), 2**40)
    assert low is not None, f"{name} has no lower bound"
    if kind is int:
        return st.integers(int(low), int(high) - (high == 2**63))
    return st.floats(low, high, exclude_min=low == 0 and any(hasattr(m, "gt") for m in field.metadata))


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    values: dict[str, dict[str, Any]] = {}
    for name, (section, field) in FIELDS:
        values.setdefault(section, {})[name] = draw(legal_values(name, field))
    values["model"]["heads"] = 1
    values["model"]["as_published"] &= values["model"]["method"] == "mmgcn"
    values["loss"]["num_candidates"] = max(1, values["loss"]["num_candidates"])
    values["cluster"]["min_workers"] = 0
    return build(("drawn", values))


@given(any_settings())
def test_toml_there_and_back_keeps_every_field(settings: Settings) -> None:
    import tomllib

    assert build(("text", tomllib.loads(to_toml(settings)))) == settings


def test_awkward_names_there_and_back(tmp_path: Path) -> None:
    for name in ("\x7f", "a\nb\t\x00", 'say "x" \\ y', "é 😀", "\u2028", ""):
        settings = build(("name", {"evaluation": {"select_row": name}}))
        (tmp_path / "s.toml").write_text(to_toml(settings), encoding="utf-8")
        assert build(("s.toml", read_toml(tmp_path / "s.toml"))) == settings


def test_defaults_and_presets_there_and_back(tmp_path: Path) -> None:
    for name in PRESETS:
        settings = build((name, preset(name)))
        (tmp_path / "s.toml").write_text(to_toml(settings), encoding="utf-8")
        assert build(("s.toml", read_toml(tmp_path / "s.toml"))) == settings
    assert build(("default", preset("default"))) == Settings()


def test_later_layers_win() -> None:
    first, second = {"training": {"epochs": 3, "patience": 4}}, {"training": {"epochs": 7}}
    settings = build(("a", first), ("b", second)).training
    assert (settings.epochs, settings.patience) == (7, 4)


def test_unknown_keys_and_tables() -> None:
    message = refused(
        {"training": {"learning_rat": 1}}, "training.learning_rat", "unknown key", "learning_rate"
    )
    assert "checkpoint_every_steps" in message
    refused({"trainin": {"epochs": 1}}, "trainin", "expected one of the tables")
    refused({"epochs": 1}, "epochs", "expected one of the tables")
    refused({"training": 3}, "training")
    with pytest.raises(InputError, match="preset"):
        preset("papr")


WRONG = {bool: "perhaps", int: 1.5, float: "much", str: 3}


@pytest.mark.parametrize(("name", "entry"), FIELDS, ids=[name for name, _ in FIELDS])
def test_wrong_types_are_refused_for_every_field(name: str, entry: tuple[str, Any]) -> None:
    kind = entry[1].annotation
    wrong: list[Any] = [{}, None]
    wrong += [[]] if name == "members" else []
    wrong += [WRONG[kind]] if isinstance(kind, type) and kind in WRONG else ["nonsense"]
    if kind is not bool:
        wrong.append(True)
    if get_origin(kind) is tuple:
        wrong += [[1.5], [True], [3] if name == "members" else ["x"], 5]
    for value in wrong:
        refused(nested(name, value), f"{entry[0]}.{name}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, (_, f) in FIELDS
        for value in (-1, 1e400, float("nan"))
        if f.annotation in (int, float)
    ],
)
def test_numbers_out_of_range_are_refused(name: str, value: Any) -> None:
    refused(nested(name, value), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_dim", 0),
        ("negative_slope", 1.1),
        ("temperature", 0),
        ("learning_rate", 0),
        ("seed", 2**63),
        ("num_neighbors", [0, 5]),
        ("num_neighbors", [-2]),
        ("num_neighbors", [1] * 9),
        ("ks", []),
        ("ks", [0, 20]),
        ("ks", [20, 20]),
        ("encoder", "GAT"),
        ("trackers", ["mlflow", "mlflow"]),
        ("trackers", ["none", "mlflow"]),
        ("mlflow_address", "https://joe:hunter2@host"),
    ],
)
def test_bounds(name: str, value: Any) -> None:
    refused(nested(name, value), name)


def test_settings_that_contradict_each_other() -> None:
    refused({"model": {"embedding_dim": 10, "heads": 4}} | {"cluster": {}}, "heads (4) must divide")
    refused({"loss": {"num_candidates": 0}}, "num_candidates")
    refused({"model": {"as_published": True}}, "as_published needs method mmgcn")
    build(("bpr", {"loss": {"supervised": "bpr", "num_candidates": 0}}))
    for metric in ("Recall@7", "Recall", "recall@20", "Coverage@20", "@20", "Recall@020"):
        refused({"evaluation": {"select_metric": metric}}, "select_metric")


def test_files_that_are_no_settings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a settings file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(InputError, match="expected a settings file"):
        read_toml(tmp_path)
    for content in (b"a = ", b"\xff\xfe"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(InputError, match="expected TOML"):
            read_toml(tmp_path / "bad.toml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().training.epochs = 5  # type: ignore[misc]


def test_every_field_says_where_its_value_comes_from() -> None:
    for name, (_, field) in FIELDS:
        assert field.description, name
        assert not isinstance(field.annotation, types.UnionType), name


def test_the_paper_preset_is_the_papers() -> None:
    settings = build(("paper", preset("paper")))
    model, loss, training = settings.model, settings.loss, settings.training
    assert (model.encoder, model.embedding_dim, len(settings.sampling.num_neighbors)) == ("gat", 128, 2)
    assert (model.layer_combination, model.self_loops, model.degree_scaling) == ("last", False, False)
    assert (model.score, model.temperature, model.activation) == ("dot", 1.0, "leaky_relu")
    assert (loss.supervised, loss.teacher, training.global_batch_size) == ("bpr", "scores", 256)
    assert 0.5 <= loss.distill_weight <= 1
    assert value_of(settings, "exclude_supervision") is False


def test_trackers_can_be_turned_off_from_the_command_line() -> None:
    assert build(("command line", {"reporting": {"trackers": ["none"]}})).reporting.trackers == ()


def test_no_message_tells_a_password() -> None:
    for values in (
        {"mlflow_address": "https://joe:hunter2@host"},
        {"mlflow_adress": "https://joe:hunter2@host"},
    ):
        assert "hunter2" not in refused({"reporting": values})
