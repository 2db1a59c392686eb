"""`python -m cluster.wait` without a cluster; tests/ray waits for real ones."""

from __future__ import annotations

import pytest

from cluster import wait


def test_no_address_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert wait.main(["--nodes", "1"]) == 2
    assert capsys.readouterr().err == "error: RAY_ADDRESS: expected host:port of a cluster, got nothing\n"


def test_too_few_nodes_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(wait.ray, "init", lambda **_: None)
    monkeypatch.setattr(wait.ray, "shutdown", lambda: None)
    monkeypatch.setattr(wait.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert wait.main(["--nodes", "2", "--seconds", "0"]) == 1
    assert capsys.readouterr().err == "failed: 10.0.0.1:6379: expected 2 nodes within 0 s, got 1 nodes\n"
    assert wait.main(["--nodes", "1", "--seconds", "0"]) == 0
