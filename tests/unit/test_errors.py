"""Errors in one line: the error itself, not the wrapping of it."""

from __future__ import annotations

import pytest

from gnnmr_dist.errors import innermost_error

WRAPPED = """Training failed due to worker errors:
[Rank 0 Error Snippet]:
Traceback (most recent call last):
  File "launch.py", line 1, in _worker
    open_dataset(path)
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            WRAPPED + "gnnmr_dist.errors.InputError: /d: expected a data set, got no manifest.json\n",
            "gnnmr_dist.errors.InputError: /d: expected a data set, got no manifest.json",
        ),
        (
            WRAPPED + "pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings\n"
            "  Value error, heads must divide\n    For further information visit https://example.org\n\n",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for Settings Value error, "
            "heads must divide For further information visit https://example.org",
        ),
        ("Failed to connect to Ray cluster at 1.2.3.4:5", "Failed to connect to Ray cluster at 1.2.3.4:5"),
        ("", "no reason given"),
    ],
)
def test_the_innermost_error_is_told(text: str, told: str) -> None:
    assert innermost_error(text) == told
