"""TensorBoard, MLflow and W&B behind one small interface; each is imported only where it was asked for.

A tracker belongs to the process that the command runs in: credentials need be nowhere else, no worker ever waits for a
server, and one tracker run goes on whatever happens to workers.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gnnmr_dist import storage
from gnnmr_dist.config import Settings, to_toml
from gnnmr_dist.errors import InputError, RunError
from gnnmr_dist.runs import RunDirectory
from gnnmr_dist.sections import ReportingSettings

MODULES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
IDS = "trackers.json"
PLACE = "epoch"
"""What every entry has: epochs done, with a fraction."""


def check_trackers(reporting: ReportingSettings, output: str) -> None:
    """Refuse trackers that are not installed, or that cannot write where they are told to.

    Raises:
        InputError: naming the extra that installs it, or the setting.
    """
    for name in reporting.trackers:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise InputError(
                f"trackers: expected {MODULES[name]} to be installed for {name} (pip install 'gnnmr-dist[{name}]'), "
                "got no such package"
            )
    if "wandb" in reporting.trackers and reporting.wandb_offline and storage.is_uri(output):
        raise InputError(f"wandb_offline: expected a run directory on this machine, got {output}")


@dataclass(frozen=True)
class Home:
    """A run as its trackers need to know it; ``done``: steps done before it goes on, ``steps``: of an epoch."""

    run: RunDirectory
    settings: Settings
    steps: int
    done: int
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    @property
    def name(self) -> str:
        """The run directory's own."""
        return self.run.address.rstrip("/").rsplit("/", 1)[-1]

    def parameters(self) -> dict[str, Any]:
        """All settings by name, with their section."""
        tables = self.settings.model_dump(mode="json")
        return {f"{section}.{key}": v for section, table in tables.items() for key, v in table.items()}

    def place(self, name: str) -> tuple[Path, bool]:
        """A local directory for a tracker's files, and whether it lies in the run directory (not on object stores)."""
        place = self.run.place(name)
        if storage.is_uri(place):
            return Path(tempfile.mkdtemp(prefix=f"gnnmr-{name}-")), False
        Path(place).mkdir(parents=True, exist_ok=True)
        return Path(place), True

    def known(self, tracker: str) -> str | None:
        """The tracker's own id of this run, if it has been given one."""
        found = _read_ids(self.run.place(IDS)).get(tracker)
        return found if isinstance(found, str) else None

    def remember(self, tracker: str, run_id: str) -> None:
        """Keep the tracker's id of this run, for when it goes on."""
        with self.lock:
            ids = _read_ids(self.run.place(IDS)) | {tracker: run_id}
            storage.write_bytes_atomic(self.run.place(IDS), (json.dumps(ids) + "\n").encode())


def _read_ids(place: str) -> dict[str, Any]:
    try:
        content = json.loads(storage.read_bytes(place))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


class Tracker(Protocol):
    """Where entries go; ``last`` is the step of the newest one it has, in whatever process it was written."""

    last: int

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take an entry; ``step`` is the number of steps done, above all earlier ones."""
        ...

    def close(self, finished: bool) -> None:
        """Everything is in; ``finished``: whether training ended as it should."""
        ...


class TensorBoard:
    """Event files in ``tensorboard/`` of the run directory; on object stores a copy follows every epoch."""

    def __init__(self, home: Home) -> None:
        from tensorboardX import SummaryWriter

        self.last, self._home, self._copied = home.done, home, 0.0
        self._directory, self._inside = home.place("tensorboard")
        purge = home.done + 1 if home.done else None  # what a cut-off run wrote beyond is hidden
        self._writer = SummaryWriter(str(self._directory), purge_step=purge, flush_secs=10)
        if not home.done:
            self._writer.add_text("settings", "    " + to_toml(home.settings).replace("\n", "\n    "))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self.last = step
        if not self._inside and time.monotonic() - self._copied > COPY_SECONDS:
            self._copy()

    def close(self, finished: bool) -> None:
        """See :class:`Tracker`."""
        self._writer.close()
        if not self._inside:
            self._copy()
            storage.remove_tree(self._directory)

    def _copy(self) -> None:
        self._writer.flush()
        for file in self._directory.iterdir():
            storage.copy_file(file, self._home.run.place("tensorboard", file.name))
        self._copied = time.monotonic()


COPY_SECONDS = 60.0


class MLflow:
    """A run of MLflow's experiment; it goes on where trackers.json knows its id and the server still has it."""

    def __init__(self, home: Home) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic", "urllib3"):  # what goes wrong is told in one line, once
            logging.getLogger(name).setLevel(logging.ERROR)
        reporting = home.settings.reporting
        self._client, self._metric = MlflowClient(tracking_uri=reporting.mlflow_address or None), Metric
        known = home.known("mlflow")
        if known is None:
            number = _experiment(self._client, reporting.experiment)
            self._id = self._client.create_run(number, run_name=home.name).info.run_id
            home.remember("mlflow", self._id)
            parameters = [Param(key, str(value)) for key, value in home.parameters().items()]
            self._client.log_batch(self._id, params=parameters)
            self.last = 0
        else:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            self.last = max((m.step for m in self._client.get_metric_history(known, PLACE)), default=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        now = int(time.time() * 1000)
        entries = [self._metric(_mlflow_name(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=entries)
        self.last = step

    def close(self, finished: bool) -> None:
        """See :class:`Tracker`."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


def _experiment(client: Any, name: str) -> str:
    """The id of MLflow's experiment of that name, made if there is none; other runs may be making it right now."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _mlflow_name(name: str) -> str:
    """``Recall@20`` as ``Recall_20``: MLflow takes letters, digits and ``_-. :/``."""
    return re.sub(r"[^\w\-. :/]", "_", name)


class WeightsAndBiases:
    """A run of W&B's project, its files in ``wandb/`` of the run directory; nothing of machine or code is collected."""

    def __init__(self, home: Home) -> None:
        import wandb

        reporting = home.settings.reporting
        offline = reporting.wandb_offline
        if not offline and not wandb.login(prompt=False):
            raise RunError("no key: expected WANDB_API_KEY, `wandb login`, or --wandb-offline")
        known = home.known("wandb")
        name = known or secrets.token_hex(4)
        directory, inside = home.place("wandb")
        self._scratch = None if inside else directory
        self._mark = directory / f"{name}.step" if offline else None  # an unsent run cannot be asked
        self._run = wandb.init(
            project=reporting.experiment,
            name=home.name,
            id=name,
            resume="allow",
            dir=str(directory.parent if inside else directory),
            mode="offline" if offline else "online",
            config=home.parameters(),
            allow_val_change=True,  # of epochs and the like, by --resume
            settings=wandb.Settings(**QUIET),
        )
        if known is None:
            home.remember("wandb", name)
        self.last = int(self._run.starting_step) - 1 if known and not offline else 0
        if self._mark is not None and self._mark.exists():
            self.last = int(self._mark.read_text(encoding="ascii"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log(dict(values), step=step)
        self.last = step
        if self._mark is not None:
            self._mark.write_text(str(step), encoding="ascii")

    def close(self, finished: bool) -> None:
        """See :class:`Tracker`."""
        self._run.finish(exit_code=0 if finished else 1)
        if self._scratch is not None:
            storage.remove_tree(self._scratch)


QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "init_timeout": 60,
    "finish_timeout": 30,
}
"""W&B's own settings: no output, no copy of it, no git remotes, no command line, no host name; bounded waits."""

OPEN: dict[str, Callable[[Home], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
