"""Training and other work on Ray Train workers."""

from __future__ import annotations

import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from gnnmr_dist.config import ClusterSettings, Settings
from gnnmr_dist.connection import LOOPBACK, connected
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.distributed.mesh import Mesh, meet_by_file, process_mesh
from gnnmr_dist.distributed.placement import worker_resources
from gnnmr_dist.errors import RunError, innermost_error
from gnnmr_dist.fitting import Record, Session, fit, open_session
from gnnmr_dist.members import members_of
from gnnmr_dist.reporting import MetricsLog
from gnnmr_dist.runs import CHECKPOINTS, METRICS, Checkpoints, RunDirectory

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
    """Train with Ray Train; returns how it finished ("epochs", "patience", "diverged: ..."), None if unknown.

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
        ),
        torch_config=_torch(cluster, gpus),
    )


def _scaling(cluster: ClusterSettings, gpus: bool) -> Any:
    wanted = worker_resources(cluster, gpus=gpus)
    number: int | tuple[int, int] = cluster.num_workers
    if cluster.elastic:
        number = (cluster.min_workers, cluster.num_workers)
        # How many fit is asked of a list of nodes that may be 20 s old; a wait for one that is gone ends after this.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    return ray.train.ScalingConfig(
        num_workers=number,
        use_gpu=gpus,
        resources_per_worker=wanted,
        elastic_resize_monitor_interval_s=cluster.resize_seconds,
    )


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
    run = RunDirectory(job.output)
    start = _start(run, job.start, mesh)
    session = open_session(dataset, settings, mesh, start)
    log = None
    if mesh.rank == 0:
        log = MetricsLog(run.place(METRICS), session.state.epoch, session.state.step)
    hooks = _RayHooks(Checkpoints(run, job.attempt, settings.training.keep_checkpoints), log, job.queue)
    fit(session, hooks)
    hooks.end(session)


def _start(run: RunDirectory, given: str | None, mesh: Mesh) -> Checkpoint | None:
    """The checkpoint that all workers go on from: the run's newest one that is whole, as rank 0 sees it."""
    address = ""
    if mesh.rank == 0:
        run.tidy()
        newest, _ = newest_checkpoint(run.checkpoints())
        address = (given or "") if newest is None else newest.address
    told = mesh.gather_world(torch.tensor(list(address.encode()), dtype=torch.uint8, device=mesh.device))
    address = bytes(told[0].tolist()).decode()
    return open_checkpoint(address, verify=False) if address else None


class _RayHooks:
    """Hooks inside a Ray Train worker: checkpoints, records to the log and to the driver."""

    def __init__(self, checkpoints: Checkpoints, log: MetricsLog | None, queue: Any) -> None:
        self.checkpoints, self.log, self.queue = checkpoints, log, queue

    def record(self, record: Record) -> None:
        """Write the record; epochs also go to the driver."""
        assert self.log is not None
        self.log.write(record)
        if record["kind"] in ("epoch", "pretraining"):
            self.log.flush()
            self.queue.put(record)

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        """See :class:`~gnnmr_dist.fitting.Hooks`."""
        if self.log is not None:
            self.log.flush()
        self.checkpoints.save(session)
        if metrics and self.log is not None:
            self.queue.put({"kind": "saved", "epoch": session.state.epoch, "valid": dict(metrics)})

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
