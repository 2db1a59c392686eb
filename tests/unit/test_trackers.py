"""The trackers themselves, each writing for real: what they hold, and that a run that goes on has every step once."""

from __future__ import annotations

import importlib.util
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from test_tracking import epoch, settings, window

from gnnmr_dist.runs import RunDirectory
from gnnmr_dist.trackers import Home, TensorBoard
from gnnmr_dist.tracking import Tracking

KEY = "0123456789abcdef0123456789abcdef01234567"


def events(directory: Path) -> list[Any]:
    """All events of the files in a directory, in the order written (TFRecord: length, its CRC, data, its CRC)."""
    return [event for file in sorted(directory.glob("events.*")) for event in _events(file.read_bytes())]


def _events(data: bytes) -> Iterator[Any]:
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 12 + length + 4


def scalars(directory: Path, name: str) -> dict[int, float]:
    """What TensorBoard shows of a scalar: a session's start hides what earlier files have from its step on."""
    found: dict[int, float] = {}
    for event in events(directory):
        if event.session_log.status == 1:
            found = {step: value for step, value in found.items() if step < event.step}
        for value in event.summary.value:
            if value.tag == name:
                assert event.step not in found
                found[event.step] = value.simple_value
    return found


def home(address: str, done: int = 0, *trackers: str, **reporting: Any) -> Home:
    return Home(RunDirectory(address), settings(*trackers or ("tensorboard",), **reporting), 4, done)


@pytest.mark.parametrize("remote", [False, True])
def test_tensorboard_of_a_run_that_was_cut_off_and_goes_on(tmp_path: Path, remote: bool) -> None:
    address = f"{'file://' if remote else ''}{tmp_path}"
    tracker = TensorBoard(home(address))
    for step in range(1, 7):
        tracker.log(step, {"train/text/kl": step / 10})
    tracker.close(False)
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name("events.0"))  # a file of the same second and process would be the same file
    again = TensorBoard(home(address, done=4))
    assert again.last == 4
    again.log(5, {"train/text/kl": 5.0})
    again.close(True)
    shown = scalars(tmp_path / "tensorboard", "train/text/kl")
    assert list(shown) == [1, 2, 3, 4, 5]
    assert shown[5] == 5.0
    assert shown[4] == pytest.approx(0.4)
    text = [v.tensor.string_val for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert any(b"[training]" in content for strings in text for content in strings)


def feed(where: Home, records: list[dict[str, Any]]) -> list[str]:
    said: list[str] = []
    with Tracking(where, said.append) as tracking:
        tracking.begin()
        for record in records:
            tracking.show(record)
    return said


FIRST = [window(0, 1), window(0, 3), epoch(0), window(1, 1)]
AGAIN = [window(1, 0), window(1, 1), window(1, 3), epoch(1)]  # cut off after step 6, going on at step 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("mlflow") is None:
        pytest.skip("mlflow is not installed: pip install 'gnnmr-dist[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", KEY)
    address = f"sqlite:///{tmp_path}/mlflow.db"
    for done, records in ((0, FIRST), (4, AGAIN)):
        where = home(str(tmp_path / "run"), done, "mlflow", mlflow_address=address, experiment="tests")
        assert feed(where, records) == []
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "epoch")] == [2, 4, 6, 8]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["valid/Recall_20"] == 0.25
    assert run.data.params["training.epochs"] == "100"
    assert_no_secret(tmp_path)


def test_wandb_offline_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed: pip install 'gnnmr-dist[wandb]'")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_trackers import AGAIN, FIRST, feed, home\n"
        "for done, records in ((0, FIRST), (4, AGAIN)):\n"
        "    print(feed(home(sys.argv[3], done, 'wandb', wandb_offline=True), records))\n"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    command = [sys.executable, "-c", script, *folders, str(tmp_path / "run"), "https://joe:hunter22@host"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[]\n[]\n", "")
    known = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "run").glob(f"wandb/offline-run-*-{known}*/run-{known}.wandb"))
    assert files
    assert (tmp_path / "run" / "wandb" / f"{known}.step").read_text() == "8"
    assert_no_secret(tmp_path)


def assert_no_secret(folder: Path) -> None:
    """Neither the key nor the command line of the test above stands in any file."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert content
    assert KEY.encode() not in content
    assert b"hunter22" not in content
