"""What every command shares: one-line errors, exit codes, and settings as options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from gnnmr_dist.config import Settings, build, fields, read_toml
from gnnmr_dist.errors import InputError, RunError, Stopped
from gnnmr_dist.presets import PRESETS, preset

EXIT_OK, EXIT_RUN_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_STOPPED = 0, 1, 2, 130, 143


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line (exit code 2) instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an :class:`InputError`, pointing at ``--help``."""
        raise InputError(f"{self.prog}: {message} (see {self.prog} --help)")


def guarded(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run ``command(argv)``; return its exit code: 0 done, 1 the run failed, 2 bad input, 130 interrupted (Ctrl-C),
    143 stopped by SIGTERM, with its state saved.

    Expected failures are told in one line on standard error; anything else is a defect and keeps its traceback.
    """
    try:
        command(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_RUN_FAILED
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--preset`` and one ``--kebab-case`` option per setting."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="settings in TOML; options given here win over it"
    )
    parser.add_argument("--preset", help=f"settings to start from: {', '.join(PRESETS)} [default]")
    groups = {section: parser.add_argument_group(section) for section in Settings.model_fields}
    for name, (section, field) in fields().items():
        option, kind = "--" + name.replace("_", "-"), field.annotation
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        help_text = f"{field.description} [{shown}]".replace("%", "%%")
        extra: dict[str, Any] = {"dest": name, "default": None, "help": help_text}
        if kind is bool:
            extra["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is Literal:
            extra["metavar"] = "|".join(map(str, get_args(kind)))
        else:
            extra |= (
                {"metavar": name.upper(), "nargs": "+"}
                if get_origin(kind) is tuple
                else {"metavar": name.upper()}
            )
        groups[section].add_argument(option, **extra)


def given_settings(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings given as options, nested by section."""
    nested: dict[str, dict[str, Any]] = {}
    for name, (section, _) in fields().items():
        value = getattr(arguments, name)
        if value is not None:
            nested.setdefault(section, {})[name] = value
    return nested


def settings_from(arguments: argparse.Namespace) -> Settings:
    """Defaults, preset, TOML, options: later ones win; raises InputError naming origin and key."""
    name = arguments.preset or "default"
    layers = [(f"preset {name}", preset(name))]
    if arguments.config is not None:
        layers.append((str(arguments.config), read_toml(arguments.config)))
    return build(*layers, ("command line", given_settings(arguments)))
