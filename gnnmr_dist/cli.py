"""What every command shares: one-line errors and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from gnnmr_dist.errors import InputError, RunError

EXIT_OK, EXIT_RUN_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line (exit code 2) instead of a usage dump."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as an :class:`InputError`, pointing at ``--help``."""
        raise InputError(f"{self.prog}: {message} (see {self.prog} --help)")


def guarded(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run ``command(argv)``; return its exit code: 0 done, 1 the run failed, 2 bad input, 130 interrupted.

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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK
