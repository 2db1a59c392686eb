"""What a run tells: metrics.jsonl without a step twice, progress, one line per epoch."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from gnnmr_dist import storage
from gnnmr_dist.reporting import EpochProgress, MetricsLog, epoch_line, read_records, records_backwards


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


def told(address: str | Path) -> list[dict[str, Any]]:
    """All records, without the time each was written."""
    records = read_records(address)
    assert all(abs(record.pop("time", now) - now) < 60 for now in [time.time()] for record in records)
    return records


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
    assert told(address) == WHOLE[:kept]
    log.flush()
    log.flush()
    assert told(address) == [*WHOLE[:kept], {"kind": "step", "epoch": 9, "step": 9}]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in WHOLE[:2]) + b'{"kind": "st')
    MetricsLog(str(file), 5, 0)
    assert told(str(file)) == WHOLE[:2]
    file.write_bytes(b"\xff\xfe broken\n" + json.dumps(WHOLE[0]).encode() + b"\n")
    MetricsLog(str(file), 5, 0)
    assert told(str(file)) == WHOLE[:1]


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
    assert told(address) == [step(0, 0), step(0, 1)]


def test_a_flush_to_an_object_store_sends_only_what_is_new(tmp_path: Path) -> None:
    address = f"file://{tmp_path}/metrics.jsonl"
    log = MetricsLog(address)
    for record in WHOLE:
        log.write(record)
        log.flush()
    parts = [file.read_text().splitlines() for file in sorted((tmp_path / "metrics").iterdir())]
    assert [[json.loads(line)["kind"] for line in part] for part in parts] == [[r["kind"]] for r in WHOLE]
    assert told(address) == told(tmp_path / "metrics.jsonl") == WHOLE
    again = MetricsLog(address, 1, 1)  # cut off and resumed, twice
    again.write(step(1, 1))
    again.flush()
    assert told(address) == WHOLE[:5]
    MetricsLog(address, 1, 0)
    assert told(address) == WHOLE[:3]


@pytest.mark.parametrize("remote", [False, True])
def test_records_come_backwards_and_only_as_far_as_asked(
    tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{'file://' if remote else ''}{tmp_path}/metrics.jsonl"
    write(address, WHOLE)
    log = MetricsLog(address, 5, 0)
    log.write({"kind": "step", "epoch": 2, "step": 0, "name": "é"})
    log.flush()
    forwards = read_records(address)
    for size in (1, 7, 64, 1 << 20):
        blocks = storage.blocks_backwards
        with monkeypatch.context() as patch:
            patch.setattr(storage, "blocks_backwards", lambda file, b=blocks, s=size: b(file, s))
            assert list(records_backwards(address)) == forwards[::-1]
    last = next(file for file in sorted(tmp_path.rglob("*.jsonl"), key=lambda f: f.stat().st_mtime)[-1:])
    with open(last, "ab") as file:
        file.write(b'{"kind": "st')  # of a process that is writing, or was killed
    assert list(records_backwards(address)) == forwards[::-1]
    assert next(records_backwards(address)) == forwards[-1]


@pytest.mark.parametrize(("remote", "seconds"), [(False, 5.0), (True, 60.0)])
def test_records_reach_the_file_by_themselves(
    tmp_path: Path, remote: bool, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("gnnmr_dist.reporting.time.monotonic", lambda: now[0])
    address = f"{'file://' if remote else ''}{tmp_path}/metrics.jsonl"
    log = MetricsLog(address)
    for record, written in zip(WHOLE[:4], (0, 0, 3, 3), strict=True):
        log.write(record)
        assert len(read_records(address)) == written
        now[0] += seconds / 2 + 0.1


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
        for record in (*WHOLE, {"kind": "steps", "epoch": 1, "step": 1}, {"kind": "saved", "epoch": 1}):
            progress.show(record)
    text = stream.getvalue()
    assert text.count("in all") == 2
    assert ("\x1b[" in text) is terminal
    if not terminal:
        assert [line[:11] for line in text.splitlines()] == ["epoch   1/2", "epoch   2/2"]
