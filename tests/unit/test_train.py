"""The train command in one process: new runs, going on, and every refusal in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from helpers import planted

from gnnmr_dist.config import Settings
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.errors import RunError
from gnnmr_dist.runs import RunDirectory
from gnnmr_dist.train import close, main

DOCS = Path(__file__).parents[2] / "docs" / "bad-inputs-train.md"
COMMON = [
    "--num-neighbors",
    "4",
    "4",
    "--embedding-dim",
    "8",
    "--global-batch-size",
    "128",
    "--valid-every",
    "1",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "data"
    planted(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs with a checkpoint after every step, to be copied before it is touched."""
    output = tmp_path_factory.mktemp("train") / "run"
    options = ["--epochs", "2", "--checkpoint-every-steps", "1", "--keep-checkpoints", "50"]
    assert main(["--dataset", str(data), "--output", str(output), *COMMON, *options]) == 0
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def resume(data: Path, run: Path, *options: str) -> int:
    return main(["--dataset", str(data), "--output", str(run), "--resume", *options])


def epochs(run: Path) -> list[int]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["epoch"] for record in records if record["kind"] == "epoch"]


def model_bytes(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "model").glob("*.safetensors"))}


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("attempt-*/epoch-*"), key=lambda place: place.name)


def test_a_finished_run_stays_as_it_is(data: Path, run: Path) -> None:
    before = model_bytes(run)
    assert resume(data, run) == 0
    assert model_bytes(run) == before
    assert epochs(run) == [0, 1]


def test_more_epochs_go_on_where_it_stopped(data: Path, run: Path, tmp_path: Path) -> None:
    assert resume(data, run, "--epochs", "3") == 0
    assert epochs(run) == [0, 1, 2]
    whole = tmp_path / "whole"
    assert main(["--dataset", str(data), "--output", str(whole), *COMMON, "--epochs", "3"]) == 0
    assert model_bytes(run) == model_bytes(whole)


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_remark(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = model_bytes(run)
    file = newest(run) / "text.weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert resume(data, run) == 0
    remark = capsys.readouterr().err
    assert remark.startswith("passed over a damaged checkpoint: ")
    assert "text.weights.safetensors: expected " in remark
    assert remark.count("\n") == 1
    assert model_bytes(run) == before
    assert epochs(run) == [0, 1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--learning-rate", "0.5"], "a resumed run keeps its settings"),
        (["--seed", "7"], "training.seed = 7"),
        (["--preset", "paper"], "--resume: expected the run's own settings"),
    ],
)
def test_changed_settings_are_refused(
    data: Path, run: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(data, run, *options) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1


def test_nothing_to_resume_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(data, tmp_path / "none") == 2
    assert "expected a complete checkpoint to resume from, got none" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_other_data_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted(tmp_path / "other", seed=9)
    assert resume(tmp_path / "other", run) == 2
    assert "expected data digest" in capsys.readouterr().err


def test_an_output_with_files_is_refused(data: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", str(data), "--output", str(run), *COMMON]) == 2
    assert "a new or empty output directory (or --resume)" in capsys.readouterr().err


def test_a_run_that_ended_without_finishing_publishes_no_model(data: Path, run: Path) -> None:
    """As when the workers are gone and nobody heard how they ended."""
    shutil.rmtree(run / "model")
    directory = RunDirectory(str(run))
    for place in directory.checkpoints():
        if "epoch-00002" in place:
            shutil.rmtree(place)
    with pytest.raises(RunError, match=r"ended before it was finished.*--resume"):
        close(directory, Settings(), open_dataset(data), None)
    assert not (run / "model").exists()


def test_sigterm_while_the_linear_peer_is_chosen_leaves_a_run_to_resume(
    data: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No model without its fusion, nor with an older one; the state says what happened."""
    kept = (run / "model" / "fusion.json").read_bytes()

    def ended(run: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("gnnmr_dist.train.fuse_with_linear_peer", ended)
        assert resume(data, run, "--epochs", "3") == 143
    assert "asked to end while the linear peer was chosen; state saved" in capsys.readouterr().err
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    assert json.loads((run / "model" / "manifest.json").read_text())  # of the two epochs, with its fusion
    assert (run / "model" / "fusion.json").read_bytes() == kept
    assert resume(data, run) == 0
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("below", ["", "run"])
def test_an_output_at_or_below_a_file_is_refused(
    data: Path, tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--dataset", str(data), "--output", str(tmp_path / "file" / below), *COMMON]) == 2
    assert "expected a directory to write to, got " in capsys.readouterr().err


IMPOSSIBLE = [
    (["--epochs", "0"], "command line, key training.epochs: Input should be greater than or equal to 1"),
    (["--epochs", "many"], "command line, key training.epochs"),
    (["--learning-rate", "nan"], "command line, key training.learning_rate"),
    (["--encoder", "mlp"], "command line, key model.encoder"),
    (["--num-neighbors", "10", "0"], "a fan-out is -1 or at least 1, not 0"),
    (["--ks", "20", "20"], "cut-offs are different whole numbers"),
    (["--ks", "5000"], "Recall@20"),
    (["--ks", "20", "5000"], "ks: expected cut-offs up to the number of items"),
    (["--select-row", "smell"], "select_row: expected one of concatenation"),
    (["--select-metric", "Accuracy@20"], "select_metric must be Recall, NDCG"),
    (["--num-candidates", "0"], "supervised = softmax needs num_candidates of at least 1"),
    (["--modality-groups", "2"], "modality_groups = 2 must divide num_workers = 1"),
    (["--num-workers", "2", "--min-workers", "3"], "min_workers (3) must not be above num_workers (2)"),
    (
        ["--num-workers", "4", "--min-workers", "2", "--modality-groups", "2"],
        "min_workers needs modality_groups 0 or 1, which fit any number of workers, got 2",
    ),
    (["--id-tables", "mapped", "--scratch", "nowhere"], "scratch: expected a directory on every node"),
    (["--heads", "3"], "heads (3) must divide embedding_dim"),
    (["--preset", "papr"], "preset: expected one of default, paper"),
    (["--config", "none.toml"], "none.toml: expected a settings file"),
    (["--sampler", "pyg"], "expected pyg-lib or torch-sparse"),
    (["--trackers", "smell"], "command line, key reporting.trackers"),
    (["--mlflow-address", "https://joe:hunter2@host"], "no password belongs here"),
    (["--no-such-option"], "unrecognized arguments: --no-such-option"),
]


def refusal(data: Path, folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What `train` says to these options; it must be one line, exit code 2, and nothing written."""
    assert main(["--dataset", str(data), "--output", str(folder / "run"), *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not (folder / "run").exists()
    return message.removeprefix("error: ").strip()


@pytest.mark.parametrize(("options", "told"), IMPOSSIBLE, ids=lambda v: v[0] if isinstance(v, list) else "")
def test_settings_that_cannot_work_are_one_line_and_nothing_is_written(
    data: Path, tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "pyg" in options and pyg_extension():
        pytest.skip("pyg-lib or torch-sparse is installed, so PyG's sampler is no bad input here")
    assert told in refusal(data, tmp_path, options, capsys)


def pyg_extension() -> bool:
    return any(importlib.util.find_spec(name) for name in ("pyg_lib", "torch_sparse"))


def test_messages_are_those_of_the_documentation(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if pyg_extension():
        pytest.skip("pyg-lib or torch-sparse is installed: one message of the page does not come")
    lines = [
        "# Bad settings to `train`, and what it says",
        "",
        "Each is one line on standard error, exit code 2, before any worker starts; nothing is written. Bad data",
        "sets are in [bad-inputs.md](bad-inputs.md). `tests/unit/test_train.py` compares this page with the messages",
        "(`GNNMR_UPDATE_DOCS=1` rewrites the page).",
        "",
        "| options | message |",
        "|---|---|",
    ]
    for options, _ in IMPOSSIBLE:
        message = refusal(data, tmp_path, options, capsys).replace("|", "\\|")
        lines.append(f"| `{' '.join(options)}` | `{message}` |")
    page = "\n".join(lines) + "\n"
    if os.environ.get("GNNMR_UPDATE_DOCS"):
        DOCS.write_text(page, encoding="utf-8")
    assert page == DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize("encoder", ["gatv2", "gcn", "sage", "lightgcn"])
def test_every_encoder_trains_end_to_end(data: Path, tmp_path: Path, encoder: str) -> None:
    options = ["--epochs", "1", "--encoder", encoder]
    assert main(["--dataset", str(data), "--output", str(tmp_path / "run"), *COMMON, *options]) == 0
    assert (tmp_path / "run" / "model" / "manifest.json").exists()
