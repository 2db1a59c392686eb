"""Errors a user can mend, each told in one line."""

from __future__ import annotations

import os
import re

_IN_ADDRESS = re.compile(r"(://)[^\s/@:]*:[^\s@]+@")
_PASSWORD = re.compile(r"://[^\s/@:?#]*:[^\s/@?#]*@")  # the same, but nothing else
_NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
_SHORTEST = 8  # characters: what is shorter stands in too many words


def without_secrets(text: str) -> str:
    """``text`` without users and passwords in addresses, and without the secrets that environment variables hold.

    A variable is taken for a secret by its name (``WANDB_API_KEY``, ``MLFLOW_TRACKING_PASSWORD``...).
    """
    for name, value in os.environ.items():
        if _NAMES.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub(r"\1***@", text)


def holds_password(address: str) -> bool:
    """Whether a URI carries a password, as in ``s3://user:password@bucket``."""
    return _PASSWORD.search(address) is not None


class InputError(Exception):
    """Something the user gave is wrong. The message is one line; entry points print it and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(" ".join(message.split())))


class RunError(Exception):
    """A run could not go on (diverged, lost its workers...). One line; entry points exit with code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(" ".join(message.split())))


class Stopped(Exception):  # noqa: N818
    """Training was asked to stop (SIGTERM) and can be resumed. One line; entry points exit with code 143."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def bad_input(
    file: str | os.PathLike[str], expected: object, got: object, *, row: int | str | None = None
) -> InputError:
    """An :class:`InputError` in the project's one form: ``FILE[, row R]: expected X, got Y``.

    Rows count from 0, as in the file's own table.
    """
    place = f"{os.fspath(file)}" + (f", row {row}" if row is not None else "")
    return InputError(f"{place}: expected {expected}, got {got}")


def innermost_error(text: str) -> str:
    """The last error that a text of nested tracebacks names, in one line: what went wrong, not where it was wrapped."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [
        n for n, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Failure)\b", line)
    ]
    return " ".join(lines[named[-1] :][:3] if named else lines[-1:]) or "no reason given"
