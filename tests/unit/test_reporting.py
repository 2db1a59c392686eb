"""What a run tells: metrics.jsonl without a step twice, progress, one line per epoch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from gnnmr_dist.reporting import EpochProgress, MetricsLog, epoch_line, read_records


def step(epoch: int, number: int) -> dict[str, Any]:
    return {"kind": "step", "epoch": epoch, "step": number}


def epoch(number: int, valid: bool = True) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": "epoch",
        "epoch": number,
        "losses": {"text": {"softmax": 2.0, "kl": 0.5}, "image": {"softmax": 4.0, "kl": 0.1}},
        "seconds": 1.25,
    }
    if valid:
        record |= {"valid": {"Recall@20": 0.25}, "best": {"epoch": 2, "Recall@20": 0.3}}
    return record


def write(address: str, records: list[dict[str, Any]]) -> None:
    log = MetricsLog(address)
    for record in records:
        log.write(record)
    log.flush()


WHOLE = [step(0, 0), step(0, 1), epoch(0), step(1, 0), step(1, 1), epoch(1)]


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("place", "kept"), [((0, 0), 0), ((0, 1), 1), ((1, 0), 3), ((1, 1), 4), ((2, 0), 6), ((3, 5), 6)]
)
def test_opened_at_a_place_it_drops_what_lies_beyond(
    tmp_path: Path, remote: bool, place: tuple[int, int], kept: int
) -> None:
    address = f"{'file://' if remote else ''}{tmp_path}/metrics.jsonl"
    write(address, WHOLE)
    log = MetricsLog(address, *place)
    log.write({"kind": "step", "epoch": 9, "step": 9})
    assert read_records(address) == WHOLE[:kept]
    log.flush()
    log.flush()
    assert read_records(address) == [*WHOLE[:kept], {"kind": "step", "epoch": 9, "step": 9}]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in WHOLE[:2]) + b'{"kind": "st')
    MetricsLog(str(file), 5, 0)
    assert read_records(str(file)) == WHOLE[:2]
    file.write_bytes(b"\xff\xfe broken\n" + json.dumps(WHOLE[0]).encode() + b"\n")
    MetricsLog(str(file), 5, 0)
    assert read_records(str(file)) == WHOLE[:1]


def test_a_process_that_was_given_up_adds_nothing_that_is_seen(tmp_path: Path) -> None:
    address = str(tmp_path / "metrics.jsonl")
    old = MetricsLog(address)
    old.write(step(0, 0))
    old.flush()
    new = MetricsLog(address, 0, 1)  # where nothing had to be dropped, too
    old.write(step(0, 1))
    old.flush()
    new.write(step(0, 1))
    new.flush()
    assert read_records(address) == [step(0, 0), step(0, 1)]


def test_a_flush_to_an_object_store_sends_only_what_is_new(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/metrics.jsonl"
    log = MetricsLog(address)
    for record in WHOLE:
        log.write(record)
        log.flush()
    sizes = [file.stat().st_size for file in sorted((tmp_path / "metrics").iterdir())]
    assert sizes == [len(json.dumps(record)) + 1 for record in WHOLE]
    assert read_records(address) == read_records(tmp_path / "metrics.jsonl") == WHOLE
    again = MetricsLog(address, 1, 1)  # cut off and resumed, twice
    again.write(step(1, 1))
    again.flush()
    assert read_records(address) == WHOLE[:5]
    MetricsLog(address, 1, 0)
    assert read_records(address) == WHOLE[:3]


def test_a_new_log_is_empty(tmp_path: Path) -> None:
    write(str(tmp_path / "m.jsonl"), WHOLE)
    MetricsLog(str(tmp_path / "m.jsonl"))
    assert (tmp_path / "m.jsonl").read_bytes() == b""


def test_one_line_per_epoch() -> None:
    line = epoch_line(epoch(0), 20, "Recall@20", 61.7)
    assert line == (
        "epoch   1/20  softmax 3.0000  kl 0.3000  valid Recall@20 0.2500 (best 0.3000, epoch 2)  1.2 s, 62 s in all"
    )
    assert "valid" not in epoch_line(epoch(0, valid=False), 20, "Recall@20", 0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_plain_lines_anywhere_and_a_bar_on_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal() if terminal else io.StringIO()
    with EpochProgress(2, 2, "Recall@20", stream) as progress:
        for record in WHOLE:
            progress.show(record)
    text = stream.getvalue()
    assert text.count("in all") == 2
    assert ("\x1b[" in text) is terminal
    if not terminal:
        assert [line[:11] for line in text.splitlines()] == ["epoch   1/2", "epoch   2/2"]
