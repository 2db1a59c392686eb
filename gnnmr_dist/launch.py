"""Training and other work on Ray Train workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError, RayError

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import Checkpoint, newest_checkpoint, open_checkpoint
from gnnmr_dist.closed_form import train_session
from gnnmr_dist.config import Settings
from gnnmr_dist.connection import connected
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.distributed.mesh import Mesh, process_mesh
from gnnmr_dist.distributed.placement import worker_resources
from gnnmr_dist.errors import RunError, Stopped, innermost_error
from gnnmr_dist.fitting import Record, Session, open_session
from gnnmr_dist.gauges import gauges
from gnnmr_dist.members import members_of
from gnnmr_dist.messages import Board
from gnnmr_dist.notice import Notice, Wish, ended_by_sigterm
from gnnmr_dist.pace import Pace
from gnnmr_dist.rendezvous import NOTICE, being_drained, torch_config
from gnnmr_dist.reporting import MetricsLog
from gnnmr_dist.runs import CHECKPOINTS, METRICS, RUN, Checkpoints, RunDirectory
from gnnmr_dist.sections import ClusterSettings

Show = Callable[[Record], None]
STOPPED = "stopped: "


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; small and plain, so it travels to any node."""

    dataset: str
    output: str
    attempt: str
    start: str | None
    settings: Mapping[str, Any]
    board: Board


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
        Stopped: SIGTERM asked for it, and the workers have saved their state.
    """
    cluster, notice = settings.cluster, Notice()
    with connected(cluster) as gpus:
        begin()
        board = Board(cluster.timeout_seconds)
        run = RunDirectory(output)
        job = Job(dataset, output, run.next_attempt(), start, settings.model_dump(mode="json"), board)
        with _forwarding(board, show, notice) as ends, _ended_by_sigterm(notice, cluster.timeout_seconds):
            try:
                _trainer(job, run, settings, gpus).fit()
            except (ray.train.TrainingFailedError, RayError) as error:
                reason = f"training failed: {innermost_error(str(error))}; --resume goes on from the last checkpoint"
                raise RunError(reason) from error
        last = ends[-1] if ends else None
        if last is not None and last.startswith(STOPPED):
            raise Stopped(last.removeprefix(STOPPED))
        return last


@contextmanager
def _ended_by_sigterm(notice: Notice, seconds: float) -> Iterator[None]:
    """While open, SIGTERM has the workers save and end; if they have not after ``seconds``, the command fails."""
    old = None

    def alarm() -> None:
        nonlocal old
        old = signal.signal(
            signal.SIGALRM, signal.default_int_handler
        )  # Ray lets only KeyboardInterrupt through
        signal.setitimer(signal.ITIMER_REAL, seconds)

    try:
        with ended_by_sigterm(notice, alarm):
            yield
    except KeyboardInterrupt:
        if notice.told is Wish.END:
            reason = f"asked to stop, but the workers saved nothing within {seconds:g} s"
            raise RunError(f"{reason}; --resume goes on from the last checkpoint") from None
        raise
    finally:
        if old is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)


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
        torch_config=torch_config(cluster, gpus),
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


def _mesh(num_modalities: int, cluster: ClusterSettings) -> Mesh:
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
    return process_mesh(
        num_modalities,
        groups=cluster.modality_groups,
        device=ray.train.torch.get_device(),
        timeout_seconds=cluster.timeout_seconds,
        notice=NOTICE,
        share_memory=cluster.share_memory,
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
        threading.Thread(target=_hear, args=(job.board,), name="notice", daemon=True).start()
    NOTICE.leaving = being_drained
    checkpoints = Checkpoints(run, job.attempt, settings.training.keep_checkpoints)
    hooks = _RayHooks(checkpoints, log, job.board, Pace.of(session))
    try:
        with gauges(session, hooks.pace, job.output):
            train_session(session, hooks)
    except Stopped as stopped:
        if mesh.notice.agreed is Wish.MOVE:
            # What Ray takes for a place that was taken away: it starts again, and counts none of max_failures.
            raise RayActorError(error_msg=str(stopped), preempted=True) from None
        session.state.finished = f"{STOPPED}{stopped}"
    hooks.end(session)


def _hear(board: Board) -> None:
    """Pass the command's wish to end on, whenever it comes."""
    with suppress(RayError):
        board.wait_for_end()
        NOTICE.tell(Wish.END)


def _start(run: RunDirectory, given: str | None, mesh: Mesh) -> Checkpoint | None:
    """The checkpoint that all workers go on from: the run's newest one that is whole, as rank 0 sees it."""
    address = ""
    if mesh.rank == 0:
        run.require(RUN)
        run.tidy()
        newest, _ = newest_checkpoint(run.checkpoints())
        address = (given or "") if newest is None else newest.address
    told = mesh.gather_world(torch.tensor(list(address.encode()), dtype=torch.uint8, device=mesh.device))
    address = bytes(told[0].tolist()).decode()
    return open_checkpoint(address, verify=False) if address else None


class _RayHooks:
    """Hooks inside a Ray Train worker: checkpoints, records to the log and to the driver."""

    def __init__(self, checkpoints: Checkpoints, log: MetricsLog | None, board: Board, pace: Pace) -> None:
        self.checkpoints, self.log, self.board, self.pace = checkpoints, log, board, pace

    def record(self, record: Record) -> None:
        """Write the record; epochs, and means over some steps, also go to the driver."""
        assert self.log is not None
        self.log.write(record)
        means = self.pace.take(record)
        if means is not None:
            self.log.write(means)
            self.board.put(means)
        if record["kind"] in ("epoch", "pretraining"):
            self.log.flush()
            self.board.put(record)

    def save(self, session: Session, metrics: Mapping[str, float]) -> None:
        """See :class:`~gnnmr_dist.fitting.Hooks`."""
        if self.log is not None:
            self.log.flush()
        self.checkpoints.save(session)
        if metrics and self.log is not None:
            self.board.put({"kind": "saved", "epoch": session.state.epoch, "valid": dict(metrics)})
        self.pace.saved()

    def end(self, session: Session) -> None:
        """Tell the driver how it finished."""
        if self.log is not None:
            self.log.flush()
            self.board.put({"kind": "end", "finished": session.state.finished})


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
        board = Board(cluster.timeout_seconds)
        trainer = ray.train.torch.TorchTrainer(
            _mesh_worker,
            train_loop_config={"work": work, "board": board, "cluster": cluster.model_dump(mode="json")},
            scaling_config=_scaling(cluster, gpus),
            run_config=ray.train.RunConfig(name="work", storage_path=scratch),
            torch_config=torch_config(cluster, gpus),
        )
        with _forwarding(board, lambda record: got.append(record["value"])) as ends:
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
    work, board, cluster = config["work"], config["board"], ClusterSettings.model_validate(config["cluster"])
    mesh = _mesh(work.num_modalities, cluster)
    for value in work.function(work.argument, mesh):
        if mesh.rank == 0:
            board.put({"kind": "value", "value": value})
    if mesh.rank == 0:
        board.put({"kind": "end", "finished": "done"})


@contextmanager
def _forwarding(board: Board, show: Show, notice: Notice | None = None) -> Iterator[list[str]]:
    """While open, a thread passes the workers' records on to ``show`` and the notice on to them.

    Yields the list of ends told.
    """
    ends: list[str] = []
    closing = threading.Event()

    def forward() -> None:
        while True:
            try:
                record = board.get()
                if notice is not None and notice.told:
                    board.end()
            except RayError:
                return
            if record is None:
                if closing.is_set():
                    return
            elif record["kind"] == "end":
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
