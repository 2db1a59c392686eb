"""The command line: every setting is an option, precedence, help, exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from gnnmr_dist.cli import (
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_RUN_FAILED,
    Parser,
    add_settings,
    given_settings,
    guarded,
    settings_from,
)
from gnnmr_dist.config import Settings, fields
from gnnmr_dist.errors import InputError, RunError


def parsed(*arguments: str) -> Any:
    parser = Parser(prog="command")
    add_settings(parser)
    return parser.parse_args(arguments)


def changed(value: Any, kind: Any) -> Any:
    """Another legal value of a setting."""
    if isinstance(value, bool):
        return not value
    if value == ():
        return (get_args(get_args(kind)[0])[0],)
    if isinstance(value, tuple):
        return (*value, "id" if isinstance(value[0], str) else 7)
    if isinstance(value, int | float):
        return value * 2 or 1
    options = [option for option in get_args(kind) if option != value]
    return options[-1] if options else "text"


@pytest.mark.parametrize("name", fields())
def test_every_setting_is_an_option(name: str) -> None:
    section, field = fields()[name]
    value = changed(field.default, field.annotation)
    if name == "select_metric":
        value = "NDCG@20"
    option = "--" + name.replace("_", "-")
    texts = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
    if isinstance(value, bool):
        option, texts = (option if value else option.replace("--", "--no-", 1)), []
    more = ["--method", "mmgcn"] if name == "as_published" else []
    arguments = parsed(option, *texts, *more)
    settings = settings_from(arguments)
    assert getattr(getattr(settings, section), name) == value
    assert list(given_settings(arguments)) == [section]
    if name in ("method", "as_published"):
        return  # which brings settings of its own: tests/unit/test_presets.py
    unchanged = settings.model_dump()
    unchanged[section][name] = field.default
    assert unchanged == Settings().model_dump()


def test_command_line_wins_over_file_wins_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("[model]\nembedding_dim = 32\ntemperature = 0.5\n")
    arguments = parsed("--preset", "paper", "--config", str(file), "--embedding-dim", "16")
    settings = settings_from(arguments)
    assert settings.model.embedding_dim == 16  # command line; 32 in the file, 128 in the preset
    assert settings.model.temperature == 0.5  # file; 1.0 in the preset
    assert settings.model.score == "dot"  # preset; cosine by default
    assert settings.training.patience == Settings().training.patience


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epochs", "many"], "command line, key training.epochs"),
        (["--epochs", "0"], "command line, key training.epochs"),
        (["--epochs"], "expected one argument"),
        (["--preset", "papr"], "preset: expected one of default, paper"),
        (["--encoder", "mlp"], "command line, key model.encoder"),
        (["--config", "/nowhere/s.toml"], "/nowhere/s.toml: expected a settings file"),
        (["--unheard-of", "1"], "unrecognized arguments"),
        (["--num-neighbors", "5", "0"], "command line, key sampling.num_neighbors"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: Sequence[str] | None) -> None:
        settings_from(parsed(*argv or ()))

    assert guarded(command, arguments) == EXIT_BAD_INPUT == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1


def test_all_neighbours_can_be_asked_for() -> None:
    assert settings_from(parsed("--num-neighbors", "-1", "-1")).sampling.num_neighbors == (-1, -1)


def test_help_tells_every_option_and_its_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no line breaks within words
    with pytest.raises(SystemExit) as caught:
        parsed("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, (_, field) in fields().items():
        assert "--" + name.replace("_", "-") in text
        assert field.description in text
    assert "[20 20]" in text


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (None, EXIT_OK, ""),
        (InputError("two\nlines"), EXIT_BAD_INPUT, "error: two lines\n"),
        (RunError("lost"), EXIT_RUN_FAILED, "failed: lost\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException | None, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(_: Sequence[str] | None) -> None:
        if error is not None:
            raise error

    assert guarded(command, []) == code
    assert capsys.readouterr().err == text


def test_a_defect_keeps_its_traceback() -> None:
    def command(_: Sequence[str] | None) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded(command, [])
