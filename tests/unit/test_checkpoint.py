"""Checkpoints: bit-exact there and back; every kind of damage is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_settings

from gnnmr_dist.checkpoint import (
    FREE_TO_CHANGE,
    MANIFEST,
    FitState,
    RunInfo,
    check_same_run,
    fingerprint_tensor,
    manifest_bytes,
    newest_checkpoint,
    open_checkpoint,
    versions,
    write_part,
)
from gnnmr_dist.config import Settings
from gnnmr_dist.data.format import ModalityInfo
from gnnmr_dist.errors import InputError

TENSORS = {
    "a": torch.tensor([[1e-45, -0.0, 3.0e38]]),
    "b.c": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).T,  # not contiguous
    "step": torch.tensor(7.0),
    "none": torch.zeros(0, 4),
}


def info(settings: Settings | None = None, digest: str = "d" * 64) -> RunInfo:
    modalities = tuple(ModalityInfo(name, "dense", 4, "float16", 0) for name in ("text", "image"))
    dumped = (settings or make_settings()).model_dump(mode="json")
    return RunInfo(dumped, "data", digest, 5, 6, modalities, ("text", "image"), versions())


def write(directory: Path, state: FitState | None = None, run: RunInfo | None = None) -> Path:
    directory.mkdir(parents=True)
    marks = {}
    for name in ("text", "image"):
        for part in ("weights", "optimizer", "best"):
            tensors = TENSORS | {"who": torch.full((1,), len(marks))}
            marks[f"{name}.{part}.safetensors"] = write_part(directory, name, part, tensors)
    (directory / MANIFEST).write_bytes(manifest_bytes(run or info(), state or FitState(), marks))
    return directory


def test_there_and_back_is_bit_exact(tmp_path: Path) -> None:
    state = FitState(3, 7, 0.1 + 0.2, 2, 1, None, [[0.1, 1e-300], [2.5, 0.0]])
    checkpoint = open_checkpoint(write(tmp_path / "c", state))
    assert checkpoint.state == state
    assert checkpoint.info == info()
    loaded = checkpoint.tensors("text", "optimizer")
    for name, expected in TENSORS.items():
        assert loaded[name].dtype == expected.dtype
        assert loaded[name].numpy().tobytes() == expected.contiguous().numpy().tobytes()
    numbers = [
        checkpoint.tensors(m, p)["who"].item()
        for m in ("text", "image")
        for p in ("weights", "optimizer", "best")
    ]
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert checkpoint.has("image", "best")
    assert not checkpoint.has("sound", "best")


def edit_manifest(change: Callable[[dict[str, Any]], Any], seal: bool = True) -> Callable[[Path], None]:
    """Change the manifest's content; ``seal`` renews its checksum, as one who forges it would."""

    def damage(directory: Path) -> None:
        content = json.loads((directory / MANIFEST).read_bytes())
        change(content)
        if seal:
            from gnnmr_dist.checkpoint import _digest

            content.pop("sha256", None)
            content["sha256"] = _digest(content)
        (directory / MANIFEST).write_text(json.dumps(content))

    return damage


def edit_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / name).write_bytes(change((directory / name).read_bytes()))

    return damage


def rename_file(new: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["files"].__setitem__(new, content["files"].pop("text.best.safetensors"))


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


WEIGHTS = "image.weights.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (shutil.rmtree, "no manifest.json"),
    "no manifest": (lambda d: (d / MANIFEST).unlink(), "no manifest.json"),
    "truncated weights": (edit_bytes(WEIGHTS, lambda b: b[:-1]), "bytes"),
    "empty weights": (edit_bytes(WEIGHTS, lambda b: b""), "bytes"),
    "longer weights": (edit_bytes(WEIGHTS, lambda b: b + b"\0"), "bytes"),
    "flipped bit": (edit_bytes(WEIGHTS, lambda b: flip(b, len(b) - 9)), "SHA-256"),
    "flipped bit of the optimizer": (
        edit_bytes("text.optimizer.safetensors", lambda b: flip(b, 20)),
        "SHA-256",
    ),
    "missing weights": (lambda d: (d / WEIGHTS).unlink(), "no such file"),
    "missing best": (lambda d: (d / "text.best.safetensors").unlink(), "no such file"),
    "swapped files": (lambda d: shutil.copy(d / WEIGHTS, d / "text.weights.safetensors"), "SHA-256"),
    "truncated manifest": (
        edit_bytes(MANIFEST, lambda b: b[: len(b) // 2]),
        "manifest of a gnnmr-dist checkpoint",
    ),
    "empty manifest": (edit_bytes(MANIFEST, lambda b: b""), "manifest of a gnnmr-dist checkpoint"),
    "binary manifest": (edit_bytes(MANIFEST, lambda b: b"\xff\xfe\0"), "manifest of a gnnmr-dist checkpoint"),
    "foreign manifest": (
        edit_bytes(MANIFEST, lambda b: b'{"name": "x"}'),
        "manifest of a gnnmr-dist checkpoint",
    ),
    "a list": (edit_bytes(MANIFEST, lambda b: b"[1, 2]"), "manifest of a gnnmr-dist checkpoint"),
    "another format": (edit_manifest(lambda c: c.update(format=1)), "checkpoint format 2"),
    "another epoch": (edit_manifest(lambda c: c["state"].update(epoch=9), seal=False), "SHA-256"),
    "another seed": (
        edit_manifest(lambda c: c["settings"]["training"].update(seed=9), seal=False),
        "SHA-256",
    ),
    "unknown state": (
        edit_manifest(lambda c: c["state"].update(more=1)),
        "manifest of a gnnmr-dist checkpoint",
    ),
    "no settings": (edit_manifest(lambda c: c.pop("settings")), "manifest of a gnnmr-dist checkpoint"),
    "file not listed": (edit_manifest(lambda c: c["files"].pop(WEIGHTS)), f"file {WEIGHTS}"),
    "path upwards": (edit_manifest(rename_file("../text.best.safetensors")), "plain names"),
    "absolute path": (edit_manifest(rename_file("/etc/passwd")), "plain names"),
    "parent directory": (edit_manifest(rename_file("..")), "plain names"),
    "no name": (edit_manifest(rename_file("")), "plain names"),
    "path as member": (
        edit_manifest(lambda c: c["members"].__setitem__(0, "../text")),
        "file ../text.weights",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(tmp_path: Path, kind: str) -> None:
    damage, expected = DAMAGE[kind]
    directory = write(tmp_path / "c")
    damage(directory)
    with pytest.raises(InputError) as caught:
        open_checkpoint(directory)
    message = str(caught.value)
    assert expected in message
    assert str(directory) in message
    assert "\n" not in message


def test_damage_found_when_a_file_is_read(tmp_path: Path) -> None:
    directory = write(tmp_path / "c")
    edit_bytes(WEIGHTS, lambda b: flip(b, 40))(directory)
    checkpoint = open_checkpoint(directory, verify=False)
    assert checkpoint.tensors("text", "weights")
    with pytest.raises(InputError, match="SHA-256"):
        checkpoint.tensors("image", "weights")
    with pytest.raises(InputError, match=r"sound\.weights"):
        checkpoint.tensors("sound", "weights")


def test_bytes_that_hash_right_but_are_no_safetensors(tmp_path: Path) -> None:
    import hashlib

    directory, junk = write(tmp_path / "c"), b"not safetensors"

    def forge(content: dict[str, Any]) -> None:
        content["files"][WEIGHTS] = {"bytes": len(junk), "sha256": hashlib.sha256(junk).hexdigest()}

    edit_manifest(forge)(directory)
    (directory / WEIGHTS).write_bytes(junk)
    with pytest.raises(InputError, match="expected safetensors"):
        open_checkpoint(directory).tensors("image", "weights")


def test_newest_passes_over_damaged_ones(tmp_path: Path) -> None:
    places = [(0, 5), (1, 0), (1, 10), (1, 9)]
    made = [
        write(tmp_path / f"attempt-{i}" / FitState(e, s).name(), FitState(e, s))
        for i, (e, s) in enumerate(places)
    ]
    addresses = [str(path) for path in made]
    newest, passed = newest_checkpoint(addresses)
    assert newest is not None
    assert (newest.state.epoch, newest.state.step, passed) == (1, 10, [])
    edit_bytes(WEIGHTS, lambda b: b[:-1])(made[2])
    (made[3] / MANIFEST).unlink()
    newest, passed = newest_checkpoint(addresses)
    assert newest is not None
    assert (newest.state.epoch, newest.state.step) == (1, 0)
    assert [str(path) in line for path, line in zip((made[2], made[3]), passed, strict=True)] == [True, True]
    assert newest_checkpoint([]) == (None, [])


def test_names_sort_as_places_do() -> None:
    places = [(0, 0), (0, 9), (0, 10), (1, 0), (9, 3), (10, 0), (10, 100_000)]
    names = [FitState(e, s).name() for e, s in places]
    assert names == sorted(names)


def test_the_same_run_may_go_on(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "c"))
    check_same_run(checkpoint, info())
    free = make_settings(
        training={"epochs": 7, "patience": 9, "checkpoint_every_steps": 3, "keep_checkpoints": 5},
        cluster={"num_workers": 4},
    )
    check_same_run(checkpoint, info(free))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("training", "seed", 1),
        ("training", "learning_rate", 0.5),
        ("training", "global_batch_size", 9),
        ("model", "embedding_dim", 16),
        ("loss", "distill_weight", 0.0),
        ("sampling", "num_neighbors", [-1]),
        ("evaluation", "ks", [5]),
    ],
)
def test_another_run_is_refused_and_the_difference_named(
    tmp_path: Path, section: str, key: str, value: Any
) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "c"))
    with pytest.raises(InputError, match=f"{section}.{key}"):
        check_same_run(checkpoint, info(make_settings(**{section: {key: value}})))


def test_a_setting_that_a_checkpoint_does_not_know_is_what_it_did(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "c"))
    settings = {section: dict(table) for section, table in checkpoint.info.settings.items()}
    del settings["loss"]["negatives"]
    older = replace(checkpoint, info=replace(checkpoint.info, settings=settings))
    check_same_run(older, info(make_settings(loss={"negatives": "all"})))
    with pytest.raises(InputError, match=r"loss.negatives = trained, got all"):
        check_same_run(older, info(make_settings(loss={"negatives": "trained"})))
    del settings["loss"]["teacher"]
    with pytest.raises(InputError, match=r"loss.teacher = scores, got None"):
        check_same_run(older, info())


def test_every_setting_but_the_free_ones_is_compared(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "c"))
    for section, table in info().settings.items():
        for key in table:
            settings = {s: dict(t) for s, t in info().settings.items()}
            settings[section][key] = "something else"
            run = replace(info(), settings=settings)
            if (section, None) in FREE_TO_CHANGE or (section, key) in FREE_TO_CHANGE:
                check_same_run(checkpoint, run)
            else:
                with pytest.raises(InputError, match=f"{section}.{key}"):
                    check_same_run(checkpoint, run)


def test_other_data_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "c"))
    with pytest.raises(InputError, match="data digest eeee"):
        check_same_run(checkpoint, info(digest="e" * 64))


def test_fingerprints_travel_as_bytes() -> None:
    marks = [bytes(range(40)), bytes(40)]
    tensor = fingerprint_tensor(marks)
    assert tensor.shape == (2, 40)
    assert [row.numpy().tobytes() for row in tensor] == marks
