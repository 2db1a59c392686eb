"""``python -m tune.sweep``: try settings on Ray Tune; the best by validation becomes a file for `train --config`."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gnnmr_dist import storage
from gnnmr_dist.checkpoint import versions
from gnnmr_dist.cli import Parser, add_settings, given_settings, guarded, settings_from
from gnnmr_dist.config import Settings, build
from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.distributed.mesh import check_groups
from gnnmr_dist.errors import InputError, RunError
from gnnmr_dist.fitting import check_settings
from tune import space as spaces
from tune.plan import Listed, Plan, Source, Suggested
from tune.record import BEST, REPORT, Record, Sweep, open_record, require_new, require_same_data
from tune.space import Choice, Space

SEARCHES = {
    "grid": "every combination of the lists",
    "random": "independent draws",
    "optuna": "Optuna's TPE sampler",
    "population": "Optuna's genetic algorithm, in generations of 10",
}
STOPPERS = ("asha", "none")


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m tune.sweep", description=__doc__.split(":", 1)[1].strip())
    made.add_argument("--dataset", metavar="DIR", help="data set made by gnnmr_dist.prepare")
    made.add_argument("--space", metavar="FILE", type=Path, help="what to vary, in TOML (docs/sweeps.md)")
    made.add_argument("--output", metavar="DIR", required=True, help="new or empty unless --resume")
    made.add_argument("--resume", action="store_true", help="go on with the interrupted sweep in --output")
    made.add_argument(
        "--search", choices=SEARCHES, help=f"{'; '.join(f'{k}: {v}' for k, v in SEARCHES.items())} [grid]"
    )
    made.add_argument(
        "--trials", metavar="N", type=int, help="points to try, each with every seed [a grid: all]"
    )
    made.add_argument("--seeds", metavar="K", type=int, help="trials per point, of different seeds [1]")
    made.add_argument(
        "--stopper", choices=STOPPERS, help="stop trials that fall behind: Ray's ASHA, or none [asha]"
    )
    made.add_argument(
        "--grace", metavar="EPOCHS", type=int, help="ASHA stops nothing before [a ninth of the epochs]"
    )
    made.add_argument("--reduction", metavar="R", type=int, help="ASHA: one of R goes on at each rung [3]")
    made.add_argument("--concurrency", metavar="N", type=int, help="trials at once [as many as always fit]")
    add_settings(made)
    return made


def command(argv: Sequence[str] | None) -> None:
    """Parse, check everything, then sweep."""
    arguments = parser().parse_args(argv)
    _check_numbers(arguments)
    _require_packages(arguments.search)
    output = arguments.output if storage.is_uri(arguments.output) else str(Path(arguments.output).absolute())
    made = ["python", "-m", "tune.sweep", *(sys.argv[1:] if argv is None else argv)]
    record, dataset, base = _resumed(arguments, output) if arguments.resume else _new(arguments, output, made)
    plan = _plan(record, dataset, base)
    from tune.driver import run_sweep  # Ray takes seconds to import, and bad input should not wait for it
    from tune.progress import SweepProgress
    from tune.report import finish

    progress = SweepProgress(plan, base)

    def begin(at_once: int) -> None:
        record.begin()
        print(_opening(record, dataset, plan, at_once), flush=True)

    try:
        lost = run_sweep(plan, progress.show, arguments.concurrency, begin)
    except (KeyboardInterrupt, RunError):
        if record.trials:
            finish(record, base)
            print(f"so far: {progress.summary()}; --resume goes on", flush=True)
        raise
    _close(record, lost, finish(record, base) is not None)


def _check_numbers(arguments: argparse.Namespace) -> None:
    for name, least in (("trials", 1), ("seeds", 1), ("grace", 1), ("reduction", 2), ("concurrency", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name}: expected a whole number from {least}, got {value}")


def _require_packages(search: str | None) -> None:
    """Optional packages, before hours of work rather than after."""
    wanted = ["matplotlib", *(["optuna"] if search in ("optuna", "population") else [])]
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"sweep: expected the package {name} (pip install 'gnnmr-dist[tune]'), got none")


def _new(arguments: argparse.Namespace, output: str, made: list[str]) -> tuple[Record, Dataset, Settings]:
    for name in ("dataset", "space"):
        if getattr(arguments, name) is None:
            raise InputError(f"sweep: expected --{name} (or --resume), got none")
    search, trials = arguments.search or "grid", arguments.trials
    if trials is None and search != "grid":
        raise InputError(f"--trials: expected how many points --search {search} is to try, got none")
    base, space = settings_from(arguments), spaces.read_space(arguments.space)
    dataset = open_dataset(arguments.dataset)
    require_new(output)
    epochs, every = base.training.epochs, base.training.valid_every
    grace = arguments.grace or min(epochs, max(every, -(-epochs // 9)))
    if grace > epochs:
        raise InputError(f"--grace: expected at most the number of epochs, {epochs}, got {grace}")
    sweep = Sweep(
        dataset=_absolute(dataset.path),
        data_digest=dataset.digest,
        space=space.tables,
        space_source=space.source,
        space_digest=space.digest,
        search=search,
        trials=trials,
        seeds=arguments.seeds or 1,
        stopper=arguments.stopper or "asha",
        grace=grace,
        reduction=arguments.reduction or 3,
        settings=base.model_dump(mode="json"),
        versions=versions(),
        command=made,
    )
    return Record(output, sweep), dataset, base


def _resumed(arguments: argparse.Namespace, output: str) -> tuple[Record, Dataset, Settings]:
    """A sweep goes on as it was; only its number of trials and where it runs may change."""
    given = given_settings(arguments)
    fixed = ("space", "search", "seeds", "stopper", "grace", "reduction", "config", "preset")
    changed = [name for name in fixed if getattr(arguments, name) is not None]
    changed += [name for section, table in given.items() if section != "cluster" for name in table]
    if changed:
        raise InputError(
            "--resume: expected the sweep's own settings (only --trials, --concurrency, --dataset and cluster "
            f"settings may be given), got --{changed[0].replace('_', '-')}"
        )
    record = open_record(output)
    _require_packages(record.sweep.search)
    base = build((record.place("sweep.json"), dict(record.sweep.settings)), ("command line", given))
    dataset = open_dataset(arguments.dataset or record.sweep.dataset)
    require_same_data(record, dataset.digest, dataset.path)
    trials = arguments.trials or record.sweep.trials
    points = 1 + max((trial.point for trial in record.trials), default=-1)
    if trials is not None and trials < points:
        raise InputError(f"--trials: expected at least the {points} points begun already, got {trials}")
    record.sweep = replace(record.sweep, dataset=_absolute(dataset.path), trials=trials)
    return record, dataset, base


def _plan(record: Record, dataset: Dataset, base: Settings) -> Plan:
    """Check every point that is known beforehand, and set up the search."""
    sweep = record.sweep
    space = spaces.parse_space(sweep.space, sweep.space_source)
    check_settings(dataset, base)
    cluster = base.cluster
    try:
        check_groups(max(cluster.num_workers, 1), len(dataset.modalities), cluster.modality_groups)
    except ValueError as error:
        raise InputError(str(error)) from None
    if sweep.search in ("grid", "random"):
        points = spaces.shuffled(spaces.grid(space), base.training.seed) if sweep.search == "grid" else []
        if sweep.search == "random":
            points = [spaces.draw(space, base.training.seed, n) for n in range(sweep.trials or 0)]
        points = points[: sweep.trials]
        for point in points:
            check_settings(dataset, spaces.settings_of(base, point, base.training.seed))
        return Plan(record, Listed(points), base, len(points))
    _check_choices(space, dataset, base)
    asked = len({trial.point for trial in record.trials})
    source: Source = Suggested(space, sweep.search, base.training.seed, asked)
    return Plan(record, source, base, sweep.trials or 0)


def _check_choices(space: Space, dataset: Dataset, base: Settings) -> None:
    """What can be told of a space whose points are not known yet: each value of a list, alone."""
    for name, domain in space.domains.items():
        for value in domain.values if isinstance(domain, Choice) else ():
            try:
                settings = spaces.settings_of(base, {name: value}, base.training.seed)
            except InputError:  # it may go with other values of other settings
                continue
            check_settings(dataset, settings)


def _opening(record: Record, dataset: Dataset, plan: Plan, at_once: int) -> str:
    sweep, cluster = record.sweep, plan.base.cluster
    ended = sum(trial.ended is not None for trial in record.trials)
    begun = len(record.trials) - ended
    going_on = f", going on: {ended} ended, {begun} begun" if record.trials else ""
    swept = ", ".join(spaces.parse_space(sweep.space, sweep.space_source).domains)
    workers = f", {cluster.num_workers} workers each" if cluster.num_workers else ""
    stopping = f"ASHA from epoch {sweep.grace}" if sweep.stopper == "asha" else "no early stopping"
    return (
        f"{dataset.name}: {sweep.search} search over {swept}, {plan.points} points x {sweep.seeds} "
        f"seed{'s' * (sweep.seeds > 1)}, {stopping}, {at_once} at once{workers}{going_on}"
    )


def _close(record: Record, lost: list[str], chosen: bool) -> None:
    """Say where all is.

    Raises:
        RunError: a trial's process was lost, or no trial has a result.
    """
    print(f"table and pictures are in {record.place(REPORT)}")
    if chosen:
        config, output = shlex.quote(record.place(BEST)), shlex.quote(record.address + "-best")
        dataset = shlex.quote(record.sweep.dataset)
        print(f"next: python -m gnnmr_dist.train --dataset {dataset} --config {config} --output {output}")
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise RunError(f"{lost[0]}{more}; --resume tries again")
    if not chosen:
        reasons = [t.ended.reason for t in record.trials if t.ended is not None and t.ended.reason]
        raise RunError(f"no trial has a result: {reasons[0] if reasons else 'none has finished'}")


def _absolute(address: str) -> str:
    return address if storage.is_uri(address) else str(Path(address).absolute())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return guarded(command, argv)


if __name__ == "__main__":
    sys.exit(main())
