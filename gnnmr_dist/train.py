"""``python -m gnnmr_dist.train``: train one network per modality (or a baseline), on Ray workers or here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gnnmr_dist import storage
from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.checkpoint import Checkpoint, check_same_run
from gnnmr_dist.cli import Parser, add_settings, given_settings, guarded, settings_from
from gnnmr_dist.closed_form import choices_of, train_session
from gnnmr_dist.config import Settings, build
from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.distributed.mesh import check_groups, local_device, one_process
from gnnmr_dist.ease import BaselineSkipped
from gnnmr_dist.errors import InputError, RunError, Stopped, without_secrets
from gnnmr_dist.fitting import Record, check_settings, open_session
from gnnmr_dist.fusion import Fusion
from gnnmr_dist.linear_peer import fuse_with_linear_peer
from gnnmr_dist.loaded import LoadedRun, open_run
from gnnmr_dist.members import features_skipped, members_of
from gnnmr_dist.notice import Notice, ended_by_sigterm, stopped_by_sigterm
from gnnmr_dist.pace import Pace
from gnnmr_dist.reporting import EpochProgress, MetricsLog
from gnnmr_dist.runs import CHECKPOINTS, METRICS, OneProcessHooks, RunDirectory, run_info
from gnnmr_dist.trackers import Home, check_trackers
from gnnmr_dist.tracking import Tracking


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m gnnmr_dist.train", description=__doc__.split(":", 1)[1].strip())
    made.add_argument("--dataset", metavar="DIR", required=True, help="data set made by gnnmr_dist.prepare")
    made.add_argument(
        "--output", metavar="DIR", required=True, help="run directory, new or empty unless --resume"
    )
    made.add_argument(
        "--resume", action="store_true", help="go on from the newest complete checkpoint in --output"
    )
    add_settings(made)
    return made


def command(argv: Sequence[str] | None) -> None:
    """Parse, check everything, then train."""
    arguments = parser().parse_args(argv)
    dataset = open_dataset(arguments.dataset)
    output = _absolute(arguments.output)
    start = None
    if arguments.resume:
        if arguments.config is not None or arguments.preset is not None:
            raise InputError(
                "--resume: expected the run's own settings (single options may change some), got --config or --preset"
            )
        start, remarks = RunDirectory(output).newest()
        for remark in remarks:
            print(f"passed over a damaged checkpoint: {remark}", file=sys.stderr)
        settings = build(
            ("checkpoint", dict(start.info.settings)), ("command line", given_settings(arguments))
        )
    else:
        settings = settings_from(arguments)
    train(dataset, output, settings, start)


def train(
    dataset: Dataset,
    output: str,
    settings: Settings,
    start: Checkpoint | None = None,
    watch: Callable[[Record], None] | None = None,
) -> None:
    """Train ``dataset`` into the run directory ``output``; the common path of command, notebook and sweep.

    Args:
        dataset: an open data set.
        output: address of the run directory.
        settings: all settings.
        start: checkpoint to go on from.
        watch: called in this process with each record of kind "epoch", and "saved" (``epoch``, ``valid``) once the
            checkpoint of a validation is complete.

    Raises:
        InputError: settings, data and output do not fit; nothing was started or written.
        RunError: training diverged or could not go on.
        Stopped: SIGTERM asked for it (in the main thread); the state is saved.
    """
    run, info = RunDirectory(output), run_info(dataset, settings)
    check_settings(dataset, settings)
    check_trackers(settings.reporting, output)
    workers = settings.cluster.num_workers
    try:
        groups = check_groups(max(workers, 1), len(info.members), settings.cluster.modality_groups)
    except ValueError as error:
        raise InputError(str(error)) from None
    if start is None:
        run.require_new()
    else:
        check_same_run(start, info)
    print(_opening(dataset, settings, info.members, groups, start), flush=True)
    metric = settings.evaluation.select_metric
    steps = -(-dataset.graph.num_edges // settings.training.global_batch_size)
    closed = CLOSED_FORM.get(settings.model.method)
    epochs = len(closed.values) if closed else settings.training.epochs
    done = 0 if start is None else start.state.epoch * steps + start.state.step
    with _noted(run, dataset.path), Tracking(Home(run, settings, steps, done)) as tracking:
        with EpochProgress(epochs, steps, metric) as progress:

            def begin() -> None:
                run.begin(info, settings, {"command": sys.argv, "steps_per_epoch": steps})
                tracking.begin()

            def show(record: Record) -> None:
                progress.show(record)
                tracking.show(record)
                if watch is not None and record["kind"] not in ("step", "steps"):
                    watch(record)

            finished = _work(dataset, run, settings, start, show, begin)
        close(run, settings, dataset, finished)
    print(f"next: python -m gnnmr_dist.evaluate --run {shlex.quote(run.address)} --split test")


def _work(
    dataset: Dataset,
    run: RunDirectory,
    settings: Settings,
    start: Checkpoint | None,
    show: Callable[[Record], None],
    begin: Callable[[], None],
) -> str | None:
    """Train on workers or in this process; ``begin`` is called once all is well and before anything is written."""
    if settings.cluster.num_workers > 0:
        from gnnmr_dist.launch import train_on_ray  # Ray takes seconds to import and is not needed here

        address = None if start is None else start.address
        return train_on_ray(_absolute(dataset.path), run.address, settings, address, show, begin)
    notice, num_members = Notice(), len(members_of(dataset, settings.model))
    mesh = one_process(num_members, local_device(settings.cluster.use_gpu), notice)
    session = open_session(dataset, settings, mesh, start)
    run.tidy()
    begin()
    log = MetricsLog(run.place(METRICS), session.state.epoch, session.state.step)
    with ended_by_sigterm(notice):
        keep = settings.training.keep_checkpoints
        train_session(session, OneProcessHooks(run, log, show, keep, Pace.of(session)))
    log.flush()
    return session.state.finished


@contextmanager
def _noted(run: RunDirectory, dataset: str) -> Iterator[None]:
    """Leave in the run directory how what happens inside ended; refusals before its beginning change nothing."""
    try:
        yield
    except InputError:
        raise
    except Stopped as stopped:
        run.note("interrupted", str(stopped))
        where = shlex.join(["--dataset", dataset, "--output", run.address])
        again = f"python -m gnnmr_dist.train {where} --resume"
        raise Stopped(f"{stopped}; state saved; {again} goes on") from None
    except BaseException as error:
        with suppress(OSError):
            if run.status().get("status") == "training":
                ended = "failed" if isinstance(error, Exception) else "interrupted"
                run.note(ended, without_secrets(str(error)))
        raise
    run.note("finished")


def close(run: RunDirectory, settings: Settings, dataset: Dataset, finished: str | None) -> None:
    """Publish the best model of a run and say where all is; ``finished`` as the workers told, None = not heard.

    The linear peer is chosen before, so that a run that has a model has all of it.

    Raises:
        RunError: training diverged, or its newest checkpoint does not say that it was finished.
    """
    if finished is not None and finished.startswith("diverged"):
        kept = (
            f"the last good state is in {run.place(CHECKPOINTS)}"
            if run.checkpoints()
            else "none saved before"
        )
        raise RunError(f"{finished}; {kept}")
    checkpoint, _ = run.newest()
    if checkpoint.state.finished is None:
        raise RunError(f"training ended before it was finished, at {checkpoint.address}; --resume goes on")
    closed = settings.model.method in CLOSED_FORM
    with stopped_by_sigterm("while the linear peer was chosen"):
        fusion = (
            _fusion(run, checkpoint, settings, dataset) if settings.model.linear_peer and not closed else None
        )
    run.publish_model(checkpoint, fusion)
    state, metric = checkpoint.state, settings.evaluation.select_metric
    members = checkpoint.info.members
    row = settings.evaluation.select_row if len(members) > 1 else members[0]
    print(f"best validation {metric} of {row}: {state.best_value:.4f} (epoch {state.best_epoch})")
    print(f"model, metrics.jsonl and checkpoints are in {run.address}")
    for name, choice in choices_of(open_run(run.address, dataset.path)).items():
        print(f"{name}: {choice}")


def _fusion(run: RunDirectory, checkpoint: Checkpoint, settings: Settings, dataset: Dataset) -> Fusion | None:
    """How the linear peer joins a checkpoint's best model, as validation prefers; None where it has no room."""
    print("choosing the linear peer on validation (a minute or more for thousands of items)", flush=True)
    members = members_of(dataset, settings.model)
    mesh = one_process(len(members), local_device(settings.cluster.use_gpu))
    fusion = fuse_with_linear_peer(LoadedRun(run, checkpoint, settings, dataset, members, mesh))
    if isinstance(fusion, BaselineSkipped):
        print(f"no linear peer: {fusion.reason}")
        return None
    if why := features_skipped(dataset, members):
        print(f"the linear peer has no features: {why.reason}")
    return fusion


def _opening(
    dataset: Dataset, settings: Settings, members: tuple[str, ...], groups: int, start: Checkpoint | None
) -> str:
    workers, method = settings.cluster.num_workers, settings.model.method
    what = f"{len(members)} networks" if method == "gnnmr" else method
    place = f"{workers} Ray Train workers ({workers // groups} x {groups})"
    if workers == 0:
        place = "this process"
    elif settings.cluster.elastic:
        place = f"{settings.cluster.min_workers} to {workers} Ray Train workers"
    begin = "" if start is None else f", going on at epoch {start.state.epoch + 1}, step {start.state.step}"
    return (
        f"{dataset.name}: {dataset.num_users} users, {dataset.num_items} items, {dataset.graph.num_edges} train "
        f"interactions, {what} on {place}{begin}"
    )


def _absolute(address: str) -> str:
    return address if storage.is_uri(address) else str(Path(address).absolute())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return guarded(command, argv)


if __name__ == "__main__":
    sys.exit(main())
