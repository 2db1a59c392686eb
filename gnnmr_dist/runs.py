"""A run directory: what is in it, and how training writes it.

settings.toml  run.json  status.json  metrics.jsonl  checkpoints/attempt-NNN/epoch-..-step-../  model/  (then evaluation
and lists; trackers.json and their folders where trackers were asked for)
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import (
    MANIFEST,
    Checkpoint,
    RunInfo,
    file_name,
    fingerprint_tensor,
    manifest_bytes,
    newest_checkpoint,
    open_checkpoint,
    versions,
    write_part,
)
from gnnmr_dist.config import Settings, to_toml
from gnnmr_dist.data.dataset import Dataset
from gnnmr_dist.errors import InputError, RunError, bad_input
from gnnmr_dist.failing_storage import told_in_one_line, within
from gnnmr_dist.fitting import Record, Session
from gnnmr_dist.fusion import Fusion, LinearPeer
from gnnmr_dist.members import members_of
from gnnmr_dist.pace import Pace
from gnnmr_dist.reporting import MetricsLog
from gnnmr_dist.sections import ClusterSettings
from gnnmr_dist.storage import Address
from gnnmr_dist.training import state_tensors

SETTINGS, RUN, STATUS, METRICS, CHECKPOINTS, MODEL, FUSION = (
    "settings.toml",
    "run.json",
    "status.json",
    "metrics.jsonl",
    "checkpoints",
    "model",
    "fusion.json",
)


@dataclass(frozen=True)
class RunDirectory:
    """Addresses in a run directory, local or on any pyarrow file system."""

    address: str

    def place(self, *parts: str) -> str:
        """The address of something in the directory."""
        return storage.join(self.address, *parts)

    def begin(self, info: RunInfo, settings: Settings, extra: Mapping[str, Any]) -> None:
        """Write settings.toml and run.json (what made the results that will stand beside them).

        Raises:
            InputError: the directory cannot be made.
        """
        try:
            storage.write_bytes_atomic(self.place(SETTINGS), to_toml(settings).encode())
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise bad_input(self.address, "a place for a directory", error.strerror) from None
        content = {"dataset": info.dataset, "data_digest": info.data_digest, "seed": settings.training.seed}
        content |= {"modalities": [m.name for m in info.modalities], "members": list(info.members)}
        content |= {"versions": dict(info.versions), **extra}
        storage.write_bytes_atomic(self.place(RUN), (json.dumps(content, indent=1) + "\n").encode())
        self.note("training")

    def note(self, status: str, reason: str = "") -> None:
        """Write status.json: "training", "finished", "failed" or "interrupted", why, and when."""
        content = {"status": status, "reason": reason, "time": round(time.time(), 3)}
        storage.write_bytes_atomic(self.place(STATUS), (json.dumps(content) + "\n").encode())

    def status(self) -> dict[str, Any]:
        """What :meth:`note` wrote last; empty where nothing is, or nothing that can be read."""
        try:
            content = json.loads(storage.read_bytes(self.place(STATUS)))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def checkpoints(self) -> list[str]:
        """Addresses of all checkpoint directories of all attempts, complete or not."""
        files = storage.list_files(self.place(CHECKPOINTS))
        found = sorted({f.rsplit("/", 1)[0] for f in files if f.rsplit("/", 2)[-2:-1] and "/epoch-" in f})
        return [self.place(CHECKPOINTS, name) for name in found]

    def next_attempt(self) -> str:
        """A name no attempt has had: attempt-001, attempt-002..."""
        files = storage.list_files(self.place(CHECKPOINTS))
        used = [int(f.split("/")[0].removeprefix("attempt-")) for f in files if f.startswith("attempt-")]
        return f"attempt-{max(used, default=0) + 1:03d}"

    def tidy(self) -> None:
        """Remove what a killed run left half-written: checkpoints without a manifest, temporary files."""
        for home in (self.address, self.place(MODEL)):
            storage.remove_drafts(home)
        for checkpoint in self.checkpoints():
            if storage.exists(storage.join(checkpoint, MANIFEST)):
                storage.remove_drafts(checkpoint)
            else:
                storage.remove_tree(checkpoint)

    def require_new(self) -> None:
        """Refuse a place that cannot be a directory or holds something already; raises InputError."""
        storage.require_directory(self.address)
        if storage.list_files(self.address):
            raise bad_input(self.address, "a new or empty output directory (or --resume)", "files in it")

    def require(self, name: str) -> None:
        """Refuse to go on where a file that a begun run has is gone: its disk may be, and nothing is started over.

        Raises:
            RunError: it is not there.
        """
        if not storage.exists(self.place(name)):
            raise RunError(f"{self.place(name)}: expected a file of this run, got none any more")

    def newest(self) -> tuple[Checkpoint, list[str]]:
        """The most advanced complete checkpoint, and remarks on damaged ones passed over.

        Raises:
            InputError: there is none.
        """
        checkpoint, passed = newest_checkpoint(self.checkpoints())
        if checkpoint is None:
            reason = f" ({passed[0]})" if passed else ""
            raise InputError(
                f"{self.place(CHECKPOINTS)}: expected a complete checkpoint to resume from, got none{reason}"
            )
        return checkpoint, passed

    def publish_model(self, checkpoint: Checkpoint, fusion: Fusion | None = None) -> None:
        """Copy the best weights into model/, in the form of a checkpoint that holds weights only, manifest last.

        ``fusion``: what validation chose for the linear peer, if there is one. An earlier model is removed.
        """
        storage.remove_tree(self.place(MODEL), first=MANIFEST)
        if fusion is not None:
            content = json.dumps({**asdict(fusion.linear), "weight": fusion.weight}) + "\n"
            storage.write_bytes_atomic(self.place(MODEL, FUSION), content.encode())
        fingerprints: dict[str, bytes] = {}
        for member in checkpoint.info.members:
            part = "best" if checkpoint.has(member, "best") else "weights"
            source, target = file_name(member, part), file_name(member, "weights")
            storage.copy_file(storage.join(checkpoint.address, source), self.place(MODEL, target))
            mark = checkpoint.files[source]
            fingerprints[target] = mark["bytes"].to_bytes(8, "big") + bytes.fromhex(mark["sha256"])
        storage.write_bytes_atomic(
            self.place(MODEL, MANIFEST), manifest_bytes(checkpoint.info, checkpoint.state, fingerprints)
        )

    def fusion(self) -> Fusion | None:
        """What :meth:`publish_model` was given, None if nothing.

        Raises:
            InputError: the file holds something else.
        """
        place = self.place(MODEL, FUSION)
        if not storage.exists(place):
            return None
        try:
            content = json.loads(storage.read_bytes(place))
            weight = float(content.pop("weight"))
            peer = LinearPeer(**{name: float(value) for name, value in content.items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise bad_input(place, "l2, powers and weights of the linear peer", str(error)) from None
        if not (peer.l2 > 0 and all(0 <= value < math.inf for value in (weight, *asdict(peer).values()))):
            raise bad_input(place, "l2 above 0, weights and powers from 0", json.dumps(content))
        return Fusion(peer, weight)

    def model(self) -> Checkpoint:
        """The finished model.

        Raises:
            InputError: the run has not finished, or its files are damaged.
        """
        if not storage.exists(self.place(MODEL, MANIFEST)):
            raise bad_input(
                self.address, "a finished run (model/manifest.json)", "none; train, or train --resume, first"
            )
        return open_checkpoint(self.place(MODEL))


def write_shard(directory: Address, session: Session) -> dict[str, bytes]:
    """Write this worker's files of a checkpoint; every worker must call it together.

    The first replica of each modality group writes; returns all workers' fingerprints by file name on every worker,
    which is once all files are durable.
    """
    kinds = ["weights", "optimizer", *(["best"] if session.best else [])]
    marks = [bytes(40)] * (len(session.models) * len(kinds))
    if session.mesh.replica == 0:
        seconds = session.settings.cluster.timeout_seconds
        marks = within(seconds, lambda: _write_parts(directory, session), directory, "checkpoint")
    table = fingerprint_tensor(marks).view(len(session.models), len(kinds), 40).to(session.mesh.device)
    if session.mesh.replica > 0:
        table.zero_()
    everyone = session.mesh.gather_modalities(table).cpu()
    return {
        file_name(name, kind): everyone[m, k].numpy().tobytes()
        for m, name in enumerate(session.names)
        for k, kind in enumerate(kinds)
    }


class Checkpoints:
    """Where a run's checkpoints go; one on every worker.

    A directory is a checkpoint once it has its manifest, which is written last and removed first.
    """

    def __init__(self, run: RunDirectory, attempt: str, keep: int) -> None:
        self.run, self.attempt, self.keep = run, attempt, keep
        self._saved: list[str] | None = None

    def save(self, session: Session) -> None:
        """Write where the session is and let the oldest go; every worker must call it together.

        Raises:
            RunError: the storage is full or gone, or did not answer within the setting ``timeout_seconds``.
        """
        first = session.mesh.rank == 0
        if first:
            self.run.require(METRICS)
        if self._saved is None:
            self._saved = self._before(session.state.name()) if first else []
        place = self.run.place(CHECKPOINTS, self.attempt, session.state.name())
        try:
            with told_in_one_line(place, "checkpoint"):
                fingerprints = write_shard(place, session)
                if first:
                    self._finish(place, manifest_of(session, fingerprints), session.settings.cluster)
        except BaseException:
            if session.mesh.world_size == 1:
                storage.remove_tree(place, first=MANIFEST)
            raise

    def _finish(self, place: str, manifest: bytes, cluster: ClusterSettings) -> None:
        """Make a directory a checkpoint, then remove what is more than to be kept."""
        assert self._saved is not None
        kept = [*self._saved, place]

        def work() -> None:
            storage.write_bytes_atomic(storage.join(place, MANIFEST), manifest)
            for old in kept[: -self.keep]:
                storage.remove_tree(old, first=MANIFEST)

        within(cluster.timeout_seconds, work, place, "checkpoint")
        self._saved = kept[-self.keep :]

    def _before(self, name: str) -> list[str]:
        """Checkpoints of this run that lie before, in the order of training."""
        found = [place for place in self.run.checkpoints() if _name(place) < name]
        return sorted(found, key=_name)


def _write_parts(directory: Address, session: Session) -> list[bytes]:
    marks = []
    for model in session.models:
        parts = state_tensors(model) | ({"best": session.best[model.number]} if session.best else {})
        marks += [write_part(directory, model.name, part, tensors) for part, tensors in parts.items()]
    return marks


def run_info(dataset: Dataset, settings: Settings) -> RunInfo:
    """What identifies a run of these settings on this data."""
    return RunInfo(
        settings=settings.model_dump(mode="json"),
        dataset=dataset.path,
        data_digest=dataset.digest,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        modalities=tuple(dataset.modalities),
        members=tuple(member.name for member in members_of(dataset, settings.model)),
        versions=versions(),
    )


def manifest_of(session: Session, fingerprints: Mapping[str, bytes]) -> bytes:
    """The manifest of a checkpoint of where the session is."""
    return manifest_bytes(run_info(session.dataset, session.settings), session.state, fingerprints)


def _name(checkpoint: str) -> str:
    return checkpoint.rsplit("/", 1)[-1]


class OneProcessHooks:
    """Hooks of a run in this process: checkpoints, records to the log and to people.

    With a ``pace``, means over some steps are recorded too.
    """

    def __init__(
        self, run: RunDirectory, log: MetricsLog, show: Any, keep: int, pace: Pace | None = None
    ) -> None:
        self.log, self.show, self.pace = log, show, pace
        self.checkpoints = Checkpoints(run, run.next_attempt(), keep)

    def record(self, record: Record) -> None:
        """See :class:`~gnnmr_dist.fitting.Hooks`."""
        self.log.write(record)
        means = None if self.pace is None else self.pace.take(record)
        if means is not None:
            self.log.write(means)
        if record["kind"] == "epoch":
            self.log.flush()
        for told in filter(None, (record, means)):
            self.show(told)

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        """See :class:`~gnnmr_dist.fitting.Hooks`."""
        self.log.flush()
        self.checkpoints.save(session)
        if self.pace is not None:
            self.pace.saved()
        if metrics:
            self.show({"kind": "saved", "epoch": session.state.epoch, "valid": dict(metrics)})
