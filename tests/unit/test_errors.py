"""Errors in one line: the error itself, not the wrapping of it."""

from __future__ import annotations

import pytest

from gnnmr_dist.errors import InputError, RunError, innermost_error, without_secrets

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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no answer from https://joe:hunter2@host:5000/api", "no answer from https://***@host:5000/api"),
        ("s3://KEY:se/cret@bucket/run and http://a:b@c", "s3://***@bucket/run and http://***@c"),
        (
            "gs://anonymous@bucket, 10:30, joe:x@mail, http://host:80/x",
            "gs://anonymous@bucket, 10:30, joe:x@mail, http://host:80/x",
        ),
        ("key 0123456789abcdef sent", "key *** sent"),
        ("short and PATH stay: tiny /some/where", "short and PATH stay: tiny /some/where"),
    ],
)
def test_no_error_tells_a_secret(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("TINY_TOKEN", "tiny")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/some/where")
    assert without_secrets(text) == str(InputError(text)) == str(RunError(text)) == told
