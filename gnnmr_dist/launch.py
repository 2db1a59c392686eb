"""Training and other work on Ray Train workers."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import open_checkpoint
from gnnmr_dist.closed_form import train_session
from gnnmr_dist.config import ClusterSettings, Settings
from gnnmr_dist.connection import LOOPBACK, connected
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.distributed.mesh import Mesh, meet_by_file, process_mesh
from gnnmr_dist.distributed.placement import worker_resources
from gnnmr_dist.errors import RunError, innermost_error
from gnnmr_dist.fitting import Record, Session, open_session
from gnnmr_dist.gauges import gauges
from gnnmr_dist.members import members_of
from gnnmr_dist.pace import Pace
from gnnmr_dist.reporting import MetricsLog
from gnnmr_dist.runs import CHECKPOINTS, METRICS, RunDirectory, save_into

Show = Callable[[Record], None]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; small and plain, so it travels to any node."""

    dataset: str
    output: str
    attempt: str
    start: str | None
    settings: Mapping[str, Any]
    queue: Any


def train_on_ray(
    dataset: str, output: str, settings: Settings, start: str | None, show: Show, begin: Callable[[], None]
) -> str | None:
    """Train with Ray Train; returns how it finished ("epochs", "patience", "values", "diverged: ..."), None if unknown.

    Args:
        dataset: address of the data set, readable on every node.
        output: address of the run directory, writable on every node.
        settings: all settings.
        start: checkpoint to go on from.
        show: called in this process with records of training as they come.
        begin: called once the workers can be placed; nothing is written before.

    Raises:
        InputError: the cluster can never place the workers.
        RunError: workers were lost more often than ``max_failures`` allows, or failed.
    """
    cluster = settings.cluster
    with connected(cluster) as gpus:
        begin()
        queue = _queue()
        run = RunDirectory(output)
        job = Job(dataset, output, run.next_attempt(), start, settings.model_dump(mode="json"), queue)
        with _forwarding(queue, show) as ends:
            try:
                _trainer(job, run, settings, gpus).fit()
            except (ray.train.TrainingFailedError, RayError) as error:
                reason = f"training failed: {innermost_error(str(error))}; --resume goes on from the last checkpoint"
                raise RunError(reason) from error
        return ends[-1] if ends else None


def _trainer(job: Job, run: RunDirectory, settings: Settings, gpus: bool) -> Any:
    cluster = settings.cluster
    return ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config=vars(job),
        scaling_config=_scaling(cluster, gpus),
        run_config=ray.train.RunConfig(
            name=job.attempt,
            storage_path=run.place(CHECKPOINTS),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=settings.training.keep_checkpoints),
        ),
        torch_config=_torch(cluster, gpus),
    )


def _scaling(cluster: ClusterSettings, gpus: bool) -> Any:
    wanted = worker_resources(cluster, gpus=gpus)
    return ray.train.ScalingConfig(num_workers=cluster.num_workers, use_gpu=gpus, resources_per_worker=wanted)


def _torch(cluster: ClusterSettings, gpus: bool) -> Any:
    alone = ray.util.get_node_ip_address() == LOOPBACK and not gpus
    config = _TorchOnOneMachine if alone else ray.train.torch.TorchConfig
    return config(backend="nccl" if gpus else "gloo", timeout_s=int(cluster.timeout_seconds))


class _MeetByFile(ray.train.torch.TorchConfig().backend_cls):  # type: ignore[misc]
    """Workers of one machine meet through a file: the store that Ray has torch open listens on every address."""

    place = ""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        place = self.place = os.path.join(tempfile.gettempdir(), f"gnnmr-{uuid.uuid4().hex}")
        world, seconds = len(worker_group), backend_config.timeout_s
        call = worker_group.execute_single_async
        ray.get([call(rank, meet_by_file, place, rank, world, seconds) for rank in range(world)])

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            with suppress(FileNotFoundError):  # torch removes it where every worker ended in peace
                os.unlink(self.place)


class _TorchOnOneMachine(ray.train.torch.TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type:
        return _MeetByFile


def _queue() -> Queue:
    """A queue beside this process: on another node (Ray's choice for an actor of no CPUs) it would be lost with it."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return Queue(actor_options={"num_cpus": 0, "label_selector": here})


def _mesh(num_modalities: int, cluster: ClusterSettings) -> Mesh:
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
    return process_mesh(
        num_modalities,
        groups=cluster.modality_groups,
        device=ray.train.torch.get_device(),
        timeout_seconds=cluster.timeout_seconds,
    )


def _worker(config: dict[str, Any]) -> None:
    job = Job(**config)
    settings = Settings.model_validate(job.settings)
    dataset = open_dataset(job.dataset, verify="structure")
    mesh = _mesh(len(members_of(dataset, settings.model)), settings.cluster)
    latest = ray.train.get_checkpoint()
    home = storage.join(job.output, CHECKPOINTS, job.attempt)
    address = job.start if latest is None else storage.join(home, os.path.basename(latest.path.rstrip("/")))
    start = None if address is None else open_checkpoint(address, verify=False)
    session = open_session(dataset, settings, mesh, start)
    log = None
    if mesh.rank == 0:
        log = MetricsLog(storage.join(job.output, METRICS), session.state.epoch, session.state.step)
    hooks = _RayHooks(log, job.queue, Pace.of(session))
    with gauges(session, hooks.pace, job.output):
        train_session(session, hooks)
    hooks.end(session)


class _RayHooks:
    """Hooks inside a Ray Train worker: checkpoints through ray.train.report, records to the log and to the driver."""

    def __init__(self, log: MetricsLog | None, queue: Any, pace: Pace) -> None:
        self.log, self.queue, self.pace = log, queue, pace

    def record(self, record: Record) -> None:
        """Write the record; epochs, and means over some steps, also go to the driver."""
        assert self.log is not None
        self.log.write(record)
        means = self.pace.take(record)
        if means is not None:
            self.log.write(means)
            self.queue.put(means)
        if record["kind"] in ("epoch", "pretraining"):
            self.log.flush()
            self.queue.put(record)

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        """Every worker hands its files to Ray, which gathers them in one directory of the storage."""
        if self.log is not None:
            self.log.flush()
        with tempfile.TemporaryDirectory() as directory:
            save_into(Path(directory), session)
            ray.train.report(
                {"epoch": session.state.epoch, "step": session.state.step, **metrics},
                checkpoint=ray.train.Checkpoint.from_directory(directory),
                checkpoint_dir_name=session.state.name(),
            )
        if metrics:
            session.mesh.barrier()  # until every worker's files are in the storage
            if self.log is not None:
                self.queue.put({"kind": "saved", "epoch": session.state.epoch, "valid": dict(metrics)})
        self.pace.saved()

    def end(self, session: Session) -> None:
        """Tell the driver how it finished."""
        if self.log is not None:
            self.log.flush()
            self.queue.put({"kind": "end", "finished": session.state.finished})


@dataclass(frozen=True)
class Work:
    """A function for every worker: what it takes, and how many modalities the mesh has."""

    function: Callable[[Any, Mesh], Iterable[Any]]
    argument: Any
    num_modalities: int


def run_on_mesh(work: Work, scratch: str, cluster: ClusterSettings) -> list[Any]:
    """Call ``work.function(work.argument, mesh)`` on every worker; returns what rank 0's call yielded, in order.

    Args:
        work: the function and its argument must be importable and small: they travel to every node.
        scratch: address for Ray's own files, writable on every node; removed at the end.
        cluster: how many workers, and what each needs.

    Raises:
        InputError: the cluster can never place the workers.
        RunError: a worker failed or was lost.
    """
    got: list[Any] = []
    with connected(cluster) as gpus:
        queue = _queue()
        trainer = ray.train.torch.TorchTrainer(
            _mesh_worker,
            train_loop_config={"work": work, "queue": queue, "cluster": cluster.model_dump(mode="json")},
            scaling_config=_scaling(cluster, gpus),
            run_config=ray.train.RunConfig(name="work", storage_path=scratch),
            torch_config=_torch(cluster, gpus),
        )
        with _forwarding(queue, lambda record: got.append(record["value"])) as ends:
            try:
                trainer.fit()
            except (ray.train.TrainingFailedError, RayError) as error:
                raise RunError(f"the workers failed: {innermost_error(str(error))}") from error
            finally:
                storage.remove_tree(scratch)
    if not ends:
        raise RunError("the workers ended without a result")
    return got


def _mesh_worker(config: dict[str, Any]) -> None:
    work, queue, cluster = config["work"], config["queue"], ClusterSettings.model_validate(config["cluster"])
    mesh = _mesh(work.num_modalities, cluster)
    for value in work.function(work.argument, mesh):
        if mesh.rank == 0:
            queue.put({"kind": "value", "value": value})
    if mesh.rank == 0:
        queue.put({"kind": "end", "finished": "done"})


@contextmanager
def _forwarding(queue: Queue, show: Show) -> Iterator[list[str]]:
    """While open, a thread passes the workers' records on to ``show``; yields the list of ends told."""
    ends: list[str] = []
    closing = threading.Event()

    def forward() -> None:
        while True:
            try:
                record = queue.get(timeout=1.0)
            except Empty:
                if closing.is_set():
                    return
                continue
            except RayError:
                return
            if record["kind"] == "end":
                ends.append(record["finished"])
            else:
                show(record)

    thread = threading.Thread(target=forward, name="progress", daemon=True)
    thread.start()
    try:
        yield ends
    finally:
        closing.set()
        thread.join(timeout=10)
