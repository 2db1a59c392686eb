"""Checkpoints: per member one safetensors file of weights, one of optimizer state, one of the best weights so far.

``manifest.json`` names every file with size and SHA-256 beside settings, seed, versions, data digest and the place in
training. A directory is a checkpoint only when all of that agrees; nothing else is ever loaded, and never a pickle.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gnnmr_dist import storage
from gnnmr_dist.config import Settings
from gnnmr_dist.data.format import ModalityInfo
from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.storage import Address

FORMAT = 2
MANIFEST = "manifest.json"
PARTS = ("weights", "optimizer", "best")


@dataclass
class FitState:
    """The place in training: everything that is not a tensor. ``step`` of ``epoch`` is the next one to do."""

    epoch: int = 0
    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    finished: str | None = None
    loss_sums: list[list[float]] = field(default_factory=list)

    def name(self) -> str:
        """Directory name of a checkpoint here; names sort as positions do."""
        return f"epoch-{self.epoch:05d}-step-{self.step:07d}"


@dataclass(frozen=True)
class RunInfo:
    """What a run is: written into every checkpoint and compared before one is used."""

    settings: Mapping[str, Any]
    dataset: str
    data_digest: str
    num_users: int
    num_items: int
    modalities: tuple[ModalityInfo, ...]
    members: tuple[str, ...]
    versions: Mapping[str, str]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results."""
    names = ("gnnmr-dist", "torch", "torch-geometric", "ray", "numpy", "numba", "pyarrow", "safetensors")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def file_name(member: str, part: str) -> str:
    """File of one member's ``weights``, ``optimizer`` state or ``best`` weights."""
    return f"{member}.{part}.safetensors"


def write_part(directory: Address, member: str, part: str, tensors: Mapping[str, Tensor]) -> bytes:
    """Write one file, from where the tensors lie; return its fingerprint: 8 bytes of length and 32 of SHA-256."""
    with storage.staged_file(storage.join(directory, file_name(member, part))) as path:
        try:
            save_file({name: t.contiguous() for name, t in tensors.items()}, path)
        except SafetensorError as error:  # a full disk, in its words
            raise OSError(str(error)) from error
        size, digest = storage.fingerprint(path)
    return size.to_bytes(8, "big") + bytes.fromhex(digest)


def manifest_bytes(info: RunInfo, state: FitState, fingerprints: Mapping[str, bytes]) -> bytes:
    """The content of ``manifest.json``; ``fingerprints`` maps file names to what :func:`write_part` returned."""
    files = {
        name: {"bytes": int.from_bytes(mark[:8], "big"), "sha256": mark[8:].hex()}
        for name, mark in sorted(fingerprints.items())
    }
    content = {"format": FORMAT, "state": asdict(state), "files": files} | asdict(info)
    return (json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n").encode()


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 over the manifest's own content, so that a changed seed or epoch does not pass for the truth."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint directory."""

    address: str
    info: RunInfo
    state: FitState
    files: Mapping[str, Mapping[str, Any]]

    def tensors(self, member: str, part: str) -> dict[str, Tensor]:
        """One file's tensors, on the mapped file itself: copy what is to be kept or changed.

        Raises:
            InputError: the file is missing or its bytes are not those of the manifest.
        """
        name = file_name(member, part)
        if name not in self.files:
            raise bad_input(storage.join(self.address, MANIFEST), f"file {name}", "none of that name")
        _verify(self.address, name, self.files[name])
        try:
            with storage.local_file(storage.join(self.address, name)) as path:
                tensors: dict[str, Tensor] = load_file(path)
        except SafetensorError as error:
            raise bad_input(storage.join(self.address, name), "safetensors", str(error)) from None
        return tensors

    def has(self, member: str, part: str) -> bool:
        """Whether the checkpoint holds that file."""
        return file_name(member, part) in self.files


def open_checkpoint(address: Address, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint's manifest and, with ``verify``, the bytes of every file it names.

    Raises:
        InputError: it is not a checkpoint, of another format, or damaged; one line with file, expected and got.
    """
    place = storage.join(address, MANIFEST)
    if not storage.exists(place):
        raise bad_input(str(address), "a checkpoint (a directory with manifest.json)", "no manifest.json")
    try:
        content = json.loads(storage.read_bytes(place))
        if content["format"] != FORMAT:
            raise bad_input(place, f"checkpoint format {FORMAT}", content["format"])
        if content.pop("sha256") != _digest(content):
            raise bad_input(place, "content of the SHA-256 it states", "other content")
        modalities = tuple(ModalityInfo(**m) for m in content["modalities"])
        members = tuple(str(name) for name in content["members"])
        state = FitState(**content["state"])
        files = {
            str(k): {"bytes": int(v["bytes"]), "sha256": str(v["sha256"])}
            for k, v in content["files"].items()
        }
        keys = ("settings", "dataset", "data_digest", "num_users", "num_items", "versions")
        info = RunInfo(modalities=modalities, members=members, **{key: content[key] for key in keys})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise bad_input(
            place, "the manifest of a gnnmr-dist checkpoint", f"{type(error).__name__}: {error}"
        ) from None
    for name in (file_name(member, "weights") for member in members):
        if name not in files:
            raise bad_input(place, f"file {name}", "none of that name")
    known = {file_name(member, part) for member in members for part in PARTS}
    for name in files:
        if name not in known or Path(name).name != name:
            raise bad_input(place, "files of its members only, in plain names", repr(name))
    if verify:
        for name, expected in files.items():
            _verify(str(address), name, expected)
    return Checkpoint(str(address), info, state, files)


def _verify(address: str, name: str, expected: Mapping[str, Any]) -> None:
    place = storage.join(address, name)
    if not storage.exists(place):
        raise bad_input(place, f"{expected['bytes']} bytes", "no such file")
    size, digest = storage.fingerprint(place)
    if size != expected["bytes"]:
        raise bad_input(place, f"{expected['bytes']} bytes", f"{size}")
    if digest != expected["sha256"]:
        raise bad_input(place, f"SHA-256 {expected['sha256'][:12]}...", "other content")


def resumed_state(checkpoint: Checkpoint, settings: Settings) -> FitState:
    """The checkpoint's place in training, open again where the new settings allow more (epochs or patience raised)."""
    state = checkpoint.state
    if state.finished == "epochs" and state.epoch < settings.training.epochs:
        state.finished = None
    if state.finished == "patience" and state.waited < settings.training.patience:
        state.finished = None if state.epoch < settings.training.epochs else "epochs"
    return state


def newest_checkpoint(addresses: Sequence[str]) -> tuple[Checkpoint | None, list[str]]:
    """The most advanced complete checkpoint of several directories, and why others further on were passed over."""
    passed: list[str] = []
    for address in sorted(addresses, key=lambda a: a.rstrip("/").rsplit("/", 1)[-1], reverse=True):
        try:
            return open_checkpoint(address), passed
        except InputError as error:
            passed.append(str(error))
    return None, passed


FREE_TO_CHANGE = {
    ("cluster", None),
    ("reporting", None),
    ("training", "epochs"),
    ("training", "patience"),
    ("training", "checkpoint_every_steps"),
    ("training", "keep_checkpoints"),
}
"""Settings that a resumed run may change; any other would make it a different run."""

BEFORE = {("loss", "negatives"): "all"}
"""Settings that older checkpoints do not have: how their runs did it."""


def check_same_run(checkpoint: Checkpoint, info: RunInfo) -> None:
    """Refuse to go on from a checkpoint of other data or other settings.

    Raises:
        InputError: naming the first difference.
    """
    place = storage.join(checkpoint.address, MANIFEST)
    if checkpoint.info.data_digest != info.data_digest:
        expected = f"data digest {info.data_digest[:12]}... of {info.dataset}"
        raise bad_input(place, expected, f"{checkpoint.info.data_digest[:12]}...")
    for section, table in info.settings.items():
        for key, value in table.items():
            if (section, None) in FREE_TO_CHANGE or (section, key) in FREE_TO_CHANGE:
                continue
            old = checkpoint.info.settings.get(section, {}).get(key, BEFORE.get((section, key)))
            if old != value:
                raise bad_input(
                    place, f"{section}.{key} = {value}", f"{old}: a resumed run keeps its settings"
                )


def fingerprint_tensor(marks: Sequence[bytes]) -> Tensor:
    """Fingerprints as uint8 [n, 40], to travel through a collective."""
    return torch.frombuffer(bytearray(b"".join(marks)), dtype=torch.uint8).view(len(marks), 40)
