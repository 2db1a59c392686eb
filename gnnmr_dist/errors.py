"""Errors a user can mend, each told in one line."""

from __future__ import annotations

import os
import re


class InputError(Exception):
    """Something the user gave is wrong. The message is one line; entry points print it and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class RunError(Exception):
    """A run could not go on (diverged, lost its workers...). One line; entry points exit with code 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


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
