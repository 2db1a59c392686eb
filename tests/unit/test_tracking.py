"""Trackers never hold a run up and never break it: entries, steps once, failures in one line without secrets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gnnmr_dist import tracking
from gnnmr_dist.config import Settings, build
from gnnmr_dist.runs import RunDirectory
from gnnmr_dist.trackers import Home, check_trackers
from gnnmr_dist.tracking import Entries, Feed, Tracking

LOSSES = {"text": {"softmax": 2.0, "kl": 0.5}}


def window(epoch: int, step: int) -> dict[str, Any]:
    return {
        "kind": "steps",
        "epoch": epoch,
        "step": step,
        "steps": 2,
        "losses": LOSSES,
        "samples_per_second": 80.0,
        "seconds": 4.0,
        "exchange_seconds": 1.0,
    }


def epoch(number: int) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "epoch": number,
        "losses": LOSSES,
        "seconds": 9.0,
        "valid": {"Recall@20": 0.25},
    }


def settings(*trackers: str, **reporting: Any) -> Settings:
    return build(("test", {"reporting": {"trackers": trackers, **reporting}}))


def test_entries_are_named_and_an_epochs_end_is_one() -> None:
    entries = Entries(steps=4)
    train = {
        "train/text/softmax": 2.0,
        "train/text/kl": 0.5,
        "train/samples_per_second": 80.0,
        "train/step_seconds": 2.0,
        "train/exchange_seconds": 0.5,
    }
    assert entries.take(window(2, 1)) == (10, {"epoch": 2.5} | train)
    assert entries.take({"kind": "step", "epoch": 2, "step": 2, "losses": LOSSES}) is None
    assert entries.take({"kind": "saved", "epoch": 2, "valid": {}}) is None
    assert entries.take(window(2, 3)) is None
    whole = {"epoch": 3.0} | train | {"valid/Recall@20": 0.25, "epoch_seconds": 9.0}
    assert entries.take(epoch(2)) == (12, whole)
    assert entries.take(epoch(3)) == (16, {"epoch": 4.0, "valid/Recall@20": 0.25, "epoch_seconds": 9.0})


class Fake:
    """A tracker that keeps what it gets; fails or hangs when told to."""

    def __init__(self, last: int = 0, fail_at: int = -1, hang: threading.Event | None = None) -> None:
        self.last, self.fail_at, self.hang = last, fail_at, hang
        self.steps: list[int] = []
        self.finished: bool | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.hang is not None:
            self.hang.wait(20)
        if step == self.fail_at:
            raise OSError("no answer from\nhttps://joe:hunter2@host/api")
        self.steps.append(step)
        self.last = step

    def close(self, finished: bool) -> None:
        self.finished = finished


def opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, open_tracker: Callable[[Home], Any], said: list[str]
) -> Tracking:
    monkeypatch.setitem(tracking.OPEN, "tensorboard", open_tracker)
    made = Tracking(Home(RunDirectory(str(tmp_path)), settings("tensorboard"), 4, 0), said.append)
    made.begin()
    return made


def test_steps_come_once_even_when_workers_start_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, said = Fake(last=2), list[str]()
    with opened(monkeypatch, tmp_path, lambda home: fake, said) as told:
        for record in (window(0, 0), window(0, 2), window(0, 3), epoch(0), window(1, 1)):
            told.show(record)
        for record in (window(0, 3), epoch(0), window(1, 1), window(1, 2)):  # from the checkpoint on
            told.show(record)
    assert fake.steps == [3, 4, 6, 7]
    assert (fake.finished, said) == (True, [])


def test_a_failure_is_told_once_in_one_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, said = Fake(fail_at=2), list[str]()
    with opened(monkeypatch, tmp_path, lambda home: fake, said) as told:
        for step in range(3):
            told.show(window(0, step))
            while step == 1 and not said:
                time.sleep(0.01)
    assert fake.steps == [1]
    assert said == ["tensorboard: https://***@host/api (training goes on without it)"]


def test_one_that_cannot_be_opened_is_told_of_and_training_that_fails_is_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(home: Home) -> Any:
        raise ValueError

    said: list[str] = []
    with opened(monkeypatch, tmp_path, broken, said) as told:
        told.show(window(0, 0))
    assert said == ["tensorboard: ValueError (training goes on without it)"]
    fake = Fake()
    with pytest.raises(ZeroDivisionError), opened(monkeypatch, tmp_path, lambda home: fake, said):
        raise ZeroDivisionError
    assert fake.finished is False


def test_a_tracker_that_hangs_costs_nothing_but_the_wait_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_AT_END", 0.2)
    hang, said = threading.Event(), list[str]()
    try:
        began = time.monotonic()
        with opened(monkeypatch, tmp_path, lambda home: Fake(hang=hang), said) as told:
            for step in range(3):
                told.show(window(0, step))
            shown = time.monotonic() - began
        assert shown < 5
        assert len(said) == 1
        assert "not all was taken within" in said[0]
    finally:
        hang.set()


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "WAITING", 3)
    hang, said = threading.Event(), list[str]()
    fake = Fake(hang=hang)
    feed = Feed("wandb", lambda: fake, said.append)
    for step in range(1, 20):
        feed.put((step, {}))
    hang.set()
    while feed.thread.is_alive():
        feed.put(True)
        feed.thread.join(0.01)
    assert said == ["wandb: too slow, it will lack some entries (metrics.jsonl has all)"]
    assert fake.steps == sorted(set(fake.steps))
    assert len(fake.steps) <= 4


def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from gnnmr_dist.errors import InputError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in (("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("wandb", "wandb")):
        with pytest.raises(InputError, match=f"trackers: expected {package} .*gnnmr-dist\\[{name}\\]"):
            check_trackers(settings(name).reporting, "run")
    monkeypatch.undo()
    check_trackers(settings("tensorboard").reporting, "run")
    check_trackers(settings().reporting, "s3://bucket/run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(InputError, match="wandb_offline: expected a run directory on this machine"):
        check_trackers(settings("wandb", wandb_offline=True).reporting, "s3://bucket/run")
