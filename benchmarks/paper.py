"""The study: every method on every set over seeds, and the paper's tables and figures from it, beside its own values.

``python benchmarks/paper.py --data DIR`` (or GNNMR_DATA) runs the plan benchmarks/study/plan.toml and writes a report
in Markdown and HTML. What is done is not done again: after a cut, the same call goes on. docs/study.md tells the rest.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # where it is imported instead of run

from study.plan import PARTS, Plan, read_plan  # noqa: E402

from gnnmr_dist.cli import Parser, guarded  # noqa: E402
from gnnmr_dist.errors import InputError, RunError  # noqa: E402


def parser() -> Parser:
    made = Parser(
        prog="python benchmarks/paper.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, parts, cores = made.add_argument, ", ".join(PARTS), os.cpu_count() or 1
    data, report, plan = (
        os.environ.get("GNNMR_DATA"),
        HERE / "results" / "paper",
        HERE / "study" / "plan.toml",
    )
    add("--data", type=Path, default=data, metavar="DIR", help="folder of the raw sets [GNNMR_DATA]")
    add("--output", type=Path, default=Path("runs/study"), metavar="DIR", help="all results [runs/study]")
    add("--report", type=Path, default=report, metavar="DIR", help="the report [benchmarks/results/paper]")
    add("--plan", type=Path, default=plan, metavar="FILE", help="the plan [benchmarks/study/plan.toml]")
    add("--take-up", type=Path, metavar="DIR", help="go on from the results beside a report")
    add("--only", nargs="+", default=[], metavar="PART", help=f"parts to run, of {parts} [all]")
    add("--sets", nargs="+", default=[], metavar="SET", help="sets of the plan [all]")
    add("--seeds", type=int, metavar="N", help="at most so many seeds of every part")
    add("--budget-hours", type=float, metavar="H", help="start no job that would end later")
    add("--processes", type=int, default=cores, metavar="P", help="jobs at once, one thread each [cores]")
    add("--report-only", action="store_true", help="run nothing: make the report of what is there")
    add("--list", action="store_true", help="run nothing: print the jobs in their order with their times")
    return made


def command(argv: Sequence[str] | None) -> None:
    options = parser().parse_args(argv)
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "paper.py: expected the package matplotlib (pip install 'gnnmr-dist[tune]'), got none"
        )
    for name in ("processes", "seeds", "budget_hours"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise InputError(
                f"--{name.replace('_', '-')}: expected more than 0, got {getattr(options, name)}"
            )
    plan = read_plan(options.plan, sets=options.sets, only=options.only, seeds=options.seeds)
    if options.take_up is not None:
        _take_up(read_plan(options.plan), options)
    if options.list:
        _list(plan, options)
        return
    _check_archive(read_plan(options.plan), options)
    failed = {} if options.report_only else _run(plan, options, list(sys.argv[1:] if argv is None else argv))
    whole = read_plan(options.plan, sets=options.sets)  # the report is of everything that is there
    _report(whole, options)
    if failed:
        raise RunError(
            f"{len(failed)} jobs failed, the first: {next(iter(failed.items()))}; the report has the others"
        )


def _take_up(plan: Plan, options: argparse.Namespace) -> None:
    from study.archive import RECORDS, take_up

    if not (options.take_up / RECORDS).exists():
        raise InputError(f"--take-up {options.take_up}: expected a report with {RECORDS}, got none")
    print(f"{take_up(plan, options.take_up, options.output)} finished jobs taken up from {options.take_up}")


def _check_archive(plan: Plan, options: argparse.Namespace) -> None:
    from study.archive import check_nothing_lost

    check_nothing_lost(plan, options.report, options.output)


def _list(plan: Plan, options: argparse.Namespace) -> None:
    from study.runner import is_done, measured

    estimates, total = measured(plan, options.output), 0.0
    for job in plan.ranked():
        done = is_done(options.output, job)
        seconds = 0.0 if done else estimates.seconds(job)
        total += seconds
        print(f"{job.name}  {'done' if done else f'{seconds:.0f} s'}")
    print(
        f"{len(plan.ranked())} jobs, about {total / 3600 / options.processes:.1f} h with "
        f"{options.processes} at once"
    )


def _run(plan: Plan, options: argparse.Namespace, argv: list[str]) -> dict[str, str]:
    """Run what is left; returns failed jobs with their errors."""
    from study.case import write_case
    from study.runner import Study

    data = None if options.data is None else Path(options.data)
    budget = None if options.budget_hours is None else 3600 * options.budget_hours
    for name, found in plan.sets.items():
        if found.recipe is not None and (data is None or not (data / name).is_dir()):
            print(f"{name} is left out: its folder was not given (--data or GNNMR_DATA)", flush=True)
    study = Study(plan, options.output, data, budget=budget, argv=argv)
    study.run(options.processes)
    write_case(plan, options.output, data)
    return study.failed


def _report(plan: Plan, options: argparse.Namespace) -> None:
    from study.archive import save
    from study.report import NAME, build
    from study.results import Findings

    data = None if options.data is None else Path(options.data)
    build(Findings(plan, options.output), data).write(options.report, NAME)
    save(Findings(read_plan(options.plan), options.output), options.report)
    print(f"wrote {options.report / (NAME + '.md')} and .html")


if __name__ == "__main__":
    sys.exit(guarded(command))
