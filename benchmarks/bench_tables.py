"""ID tables in mapped files against tables in memory: speed of a step, anonymous memory, and a budget below the tables.

A data set of ``large_graph.py`` (two dense modalities), steps of a batch of 1,024 as a run has by default, one thread.
Both sides take the same steps in turns, in wall clock. The headline is steps per second mapped / in memory while the
machine has room for the files' pages; their disk is that of ``--scratch``.

Budget: a process of its own may have so much anonymous memory (RLIMIT_DATA) above what it has before it opens the run,
half of what the tables take, and does 10 steps.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from large_graph import large_dataset
from measure import Report, parser, ratio, side_by_side, use_threads

from gnnmr_dist.config import build
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.distributed.mesh import one_process
from gnnmr_dist.fitting import Session, open_session, upcoming_steps
from gnnmr_dist.runs import write_shard
from gnnmr_dist.training import train_step

KINDS = ("memory", "mapped")
BATCH, STEPS = 1024, 10


def open_side(path: Path, kind: str, scratch: str) -> Session:
    dataset = open_dataset(path, verify="structure")
    settings = build(
        (
            "benchmark",
            {
                "training": {"global_batch_size": BATCH},
                "sampling": {"num_neighbors": [10, 10]},
                "loss": {"num_candidates": 64},
                "cluster": {"prefetch": "exchange", "id_tables": kind, "scratch": scratch},
            },
        )
    )
    return open_session(dataset, settings, one_process(len(dataset.modalities)), None)


def run(session: Session, first: int) -> float:
    """Seconds a step."""
    steps = range(first, first + STEPS)
    started = time.perf_counter()
    for data, rows in upcoming_steps(session, 0, steps):
        train_step(session.models, data, rows, session.present, session.mesh, session.settings)
    return (time.perf_counter() - started) / STEPS


def status(key: str) -> float:
    """MiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def formula_mib(session: Session) -> float:
    """What tables, moments and steps take."""
    dataset = session.dataset
    rows = (dataset.num_users + dataset.num_items) * len(dataset.modalities)
    return rows * (12 * session.settings.model.embedding_dim + 4) / 2**20


def within(path: Path, kind: str, scratch: str, budget_mib: int) -> None:
    """What the process with a budget does; it prints its seconds a step."""
    run(
        open_side(path, "mapped", scratch), 0
    )  # everything is imported, compiled and mapped that a step needs
    limit = int((status("VmData") + budget_mib) * 2**20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(run(open_side(path, kind, scratch), STEPS))


def told(path: Path, kind: str, scratch: str, budget_mib: int, threads: int) -> str:
    options = ["--within", kind, str(budget_mib), "--data", str(path), "--scratch", scratch]
    command = [sys.executable, __file__, *options, "--threads", str(threads)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        return f"fails: {found.stderr.strip().splitlines()[-1]}"
    return f"{float(found.stdout.split()[-1]) * 1e3:.0f} ms a step"


def report_sides(report: Report, path: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Tables of speed, memory and checkpoints; the headline, and the tables' MiB."""
    sessions, memory = {}, {}
    for kind in KINDS:
        before = status("RssAnon")
        sessions[kind] = open_side(path, kind, options.scratch)
        memory[kind] = status("RssAnon") - before
    place = dict.fromkeys(KINDS, 0)

    def steps(kind: str) -> float:
        place[kind] += STEPS
        return run(sessions[kind], place[kind])

    def save(kind: str) -> None:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            write_shard(Path(folder), sessions[kind])

    seconds = side_by_side({k: (lambda k=k: steps(k)) for k in KINDS}, rounds=options.rounds)
    saving = side_by_side({k: (lambda k=k: save(k)) for k in KINDS}, rounds=3)
    formula = formula_mib(sessions["memory"])
    rows = [
        (
            kind,
            f"{median(seconds[kind]) * 1e3:.0f}",
            f"{min(seconds[kind]) * 1e3:.0f} to {max(seconds[kind]) * 1e3:.0f}",
            f"{memory[kind]:,.0f}",
            f"{median(saving[kind]):.2f}",
        )
        for kind in KINDS
    ]
    report.say(f"Tables, moments and steps by the formula: {formula:,.0f} MiB.")
    report.table(
        ("tables", "ms a step", "from, to", "MiB of anonymous memory", "s to write a checkpoint"), rows
    )
    return ratio(seconds["memory"], seconds["mapped"]), formula


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--edges", type=float, help="train edges [1e7; with --quick 1e5]")
    made.add_argument("--data", type=Path, help="keep the data set here [a temporary directory]")
    made.add_argument("--scratch", default=tempfile.gettempdir(), help="directory of the mapped files")
    made.add_argument("--within", nargs=2, metavar=("KIND", "MIB"), help=argparse.SUPPRESS)
    options = made.parse_args()
    use_threads(options.threads)
    if options.within:
        within(options.data, options.within[0], options.scratch, int(options.within[1]))
        return
    report = Report("tables", "ID tables in mapped files and in memory", options)
    with tempfile.TemporaryDirectory() as temporary:
        edges = int(options.edges or (1e5 if options.quick else 1e7))
        path = (options.data or Path(temporary)) / str(edges)
        if not path.exists():
            large_dataset(path, edges=edges)
        headline, formula = report_sides(report, path, options)
        budget = int(formula / 2)
        report.say(f"## A budget of {budget:,} MiB")
        rows = [(k, told(path, k, options.scratch, budget, options.threads)) for k in KINDS]
        report.table(("tables", f"{STEPS} steps"), rows)
    report.close(headline)


if __name__ == "__main__":
    main()
