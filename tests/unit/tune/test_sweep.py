"""The sweep command before Ray starts: every refusal in one line, nothing written; and the report of a record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers import planted

from gnnmr_dist.config import build, read_toml
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.train import train
from tune.plan import Listed, Plan
from tune.record import Ended, Record, open_record
from tune.report import finish
from tune.space import grid, parse_space, settings_of
from tune.sweep import main

DOCS = Path(__file__).parents[3] / "docs" / "bad-inputs-sweep.md"
GOOD = "[loss]\ndistill_weight = [0.0, 0.5]\n"
SMALL = ["--embedding-dim", "8", "--num-neighbors", "4", "4", "--epochs", "2", "--valid-every", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "data"
    planted(folder)
    return folder


SPACES = [
    ("[loss", "expected TOML"),
    ("", "expected at least one setting to vary, got none"),
    ("distill_weight = [1.0]", "expected one of the tables model, loss"),
    ("[loss]\nlambda = [1.0]", "key loss.lambda: expected one of supervised, num_candidates"),
    ("[model]\ndistill_weight = [1.0]", "key model.distill_weight: expected one of method"),
    ("[loss]\ndistill_weight = 1.0", "expected a list of values, or a table with low and high, got 1.0"),
    ("[loss]\ndistill_weight = []", "got []"),
    ("[loss]\ndistill_weight = [1, 1.0]", "expected different values"),
    ("[loss]\ndistill_weight = [-1.0]", "Input should be greater than or equal to 0, got -1.0"),
    ('[model]\nembedding_dim = ["wide"]', "key model.embedding_dim"),
    ("[model]\nembedding_dim = [true]", "a truth value stands where none belongs"),
    ("[sampling]\nnum_neighbors = [[10, 0]]", "a fan-out is -1 or at least 1"),
    ("[loss]\ndistill_weight = { low = 0.1 }", "expected low and high, perhaps log or step"),
    ("[loss]\ndistill_weight = { low = 2.0, high = 1.0 }", "expected low below high"),
    ("[loss]\ndistill_weight = { low = 0.0, high = 1.0, log = true }", "expected a log range from above 0"),
    (
        "[loss]\nnum_candidates = { low = 8, high = 64, step = 0.5 }",
        "expected a step above 0, a whole number",
    ),
    ('[model]\nencoder = { low = "gat", high = "sage" }', "only numbers have ranges"),
    ("[loss]\ndistill_weight = { low = 0.1, high = 1.0 }", "expected a list of values for --search grid"),
    ("[training]\nseed = [1, 2]", "a setting that a sweep may vary: repeats have seeds of their own"),
    ('[evaluation]\nselect_row = ["average"]', "trials are compared by one metric"),
    ("[cluster]\nnum_workers = [1, 2]", "it changes no result"),
    ("[model]\nheads = [1, 3]", "point heads 3: heads (3) must divide embedding_dim (8)"),
    ('[sampling]\nsampler = ["builtin", "pyg"]', "expected pyg-lib or torch-sparse"),
]
OPTIONS = [
    (["--search", "random"], "--trials: expected how many points --search random is to try, got none"),
    (["--search", "random", "--trials", "0"], "--trials: expected a whole number from 1, got 0"),
    (["--search", "annealing"], "invalid choice: 'annealing'"),
    (["--seeds", "0"], "--seeds: expected a whole number from 1"),
    (["--grace", "9"], "--grace: expected at most the number of epochs, 2, got 9"),
    (["--reduction", "1"], "--reduction: expected a whole number from 2"),
    (["--space", "none.toml"], "none.toml: expected a settings file"),
    (["--ks", "20", "5000"], "ks: expected cut-offs up to the number of items"),
    (["--resume"], "--resume: expected the sweep's own settings"),
]


def refusal(data: Path, folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    output = folder / "sweep"
    given = ["--dataset", str(data), "--space", "space.toml", "--output", str(output), *SMALL, *options]
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(given) == 2
    finally:
        os.chdir(before)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert not output.exists()
    return message.removeprefix("error: ").strip()


@pytest.mark.parametrize(("space", "told"), SPACES)
def test_bad_space_files_are_one_line(
    data: Path, tmp_path: Path, space: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.toml").write_text(space)
    message = refusal(data, tmp_path, [], capsys)
    assert told in message
    assert message.startswith(("space.toml", "point heads", "PyG's"))


@pytest.mark.parametrize(("options", "told"), OPTIONS)
def test_bad_options_are_one_line(
    data: Path, tmp_path: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.toml").write_text(GOOD)
    assert told in refusal(data, tmp_path, options, capsys)


def test_a_data_set_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.toml").write_text(GOOD)
    assert "gone: expected a directory, got nothing there" in refusal(tmp_path / "gone", tmp_path, [], capsys)


def test_messages_are_those_of_the_documentation(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "# Bad input to `python -m tune.sweep`, and what it says",
        "",
        "Each is one line on standard error, exit code 2, before Ray starts; nothing is written. Bad settings are in",
        "[bad-inputs-train.md](bad-inputs-train.md). `tests/unit/tune/test_sweep.py` compares this page with",
        "the messages (`GNNMR_UPDATE_DOCS=1` rewrites the page).",
        "",
        "| space file or options | message |",
        "|---|---|",
    ]
    for space, _ in SPACES:
        if "pyg" in space:
            continue
        (tmp_path / "space.toml").write_text(space)
        message = refusal(data, tmp_path, [], capsys).replace("|", "\\|")
        lines.append(f"| `{' '.join(space.split()) or ' '}` | `{message}` |")
    (tmp_path / "space.toml").write_text(GOOD)
    for options, _ in OPTIONS:
        message = refusal(data, tmp_path, options, capsys).replace("|", "\\|")
        lines.append(f"| `{' '.join(options)}` | `{message}` |")
    page = "\n".join(lines) + "\n"
    if os.environ.get("GNNMR_UPDATE_DOCS"):
        DOCS.write_text(page, encoding="utf-8")
    assert page == DOCS.read_text(encoding="utf-8")


def test_a_report_tells_finished_stopped_and_failed_apart(data: Path, tmp_path: Path) -> None:
    """A record of real runs made without Ray: the best is a finished one, the stopped one gets its model."""
    from test_plan import record_in

    tables = {"loss": {"distill_weight": [0.0, 0.5, 1.0]}}
    base = build(
        (
            "t",
            {
                "model": {"embedding_dim": 8},
                "sampling": {"num_neighbors": [4]},
                "training": {"epochs": 2, "valid_every": 1},
            },
        )
    )
    made = record_in(tmp_path)
    record = Record(
        made.address,
        type(made.sweep)(
            **{**vars(made.sweep), "space": tables, "versions": {"gnnmr-dist": "0", "torch": "0", "ray": "0"}}
        ),
    )
    record.begin()
    plan = Plan(record, Listed(grid(parse_space(tables, "s.toml"))), base, 3)
    dataset = open_dataset(data)
    for status in ("finished", "stopped", "failed"):
        trial = plan.next()
        assert trial is not None
        if status != "failed":
            train(dataset, record.run(trial), settings_of(base, trial.values, trial.seed))
            ended = Ended(status, 0.3 if status == "finished" else 0.9, 2, 2)
        else:
            ended = Ended("failed", reason="diverged: loss | of text")
        plan.end(trial, ended)
    shutil.rmtree(tmp_path / "trials" / "trial-0001" / "model")
    chosen = finish(open_record(str(tmp_path)), base)
    assert chosen is not None
    assert chosen.trials[0].name == "trial-0000"
    assert (tmp_path / "trials" / "trial-0001" / "model" / "manifest.json").exists()
    text = (tmp_path / "report.md").read_text()
    assert "1 finished, 1 stopped, 1 failed, 0 unfinished" in text
    assert "so not chosen: trial-0001" in text
    assert "failed: diverged: loss / of text" in text
    for name in ("sensitivity-distill_weight.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert name in text
    assert build(("best", read_toml(tmp_path / "best.toml"))) == settings_of(base, chosen.values, 0)
