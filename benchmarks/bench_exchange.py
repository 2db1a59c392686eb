"""The price of distribution: two workers with one modality each, with and without exchange, and one process with both.

Four sides train the same two modalities with the same settings, the same number of steps at a time, in turns: two
gloo processes of one thread each, which pass scores through common memory as workers of one machine do; the same two
through sockets (``share_memory`` = no), as between machines; the same two with an exchange that sends nothing (each
takes its own scores for its peer's); and one process of two threads that hosts both. All sample for themselves, as a
run does; all workers but those with sockets add their losses up through memory at the end of a step.

With ``--replicas`` the two workers are replicas instead: each has both modalities and half of the rows, and what they
exchange are gradients.

Also given: the time a worker spends in starting the exchange and waiting for it (the worker with less to do waits for
the other as well, so both are told), and the bytes that crossed the loopback interface with sockets against the
formula of docs/distributed.md: of scores (G - 1) * modalities hosted * (b + n C) * 4 bytes a step for each worker, b
rows of n users with C candidates.

Headline: the step without exchange / the step with it, through memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from large_graph import large_dataset
from measure import Report, parser, ratio, side_by_side, spread, use_threads
from paced import open_modalities

from gnnmr_dist.config import Settings, build
from gnnmr_dist.distributed.mesh import EXCHANGED, Mesh, meet_by_file, one_process, process_mesh
from gnnmr_dist.distributed.shared_memory import SharedMemory
from gnnmr_dist.errors import RunError
from gnnmr_dist.fitting import Session, open_session, upcoming_steps
from gnnmr_dist.training import train_step


@dataclass
class Clock:
    """Seconds spent in the exchange."""

    seconds: float = 0.0

    def around(self, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.seconds += time.perf_counter() - started


@dataclass(frozen=True)
class TimedMesh(Mesh):
    """A mesh that times its exchange, or sends nothing."""

    silent: bool = False
    clock: Clock = field(default_factory=Clock)

    def start_gather(self, own: torch.Tensor, carried: str = "scores") -> Callable[[], torch.Tensor]:
        if self.silent:
            return lambda: own.expand(self.num_modalities, *own.shape[1:])
        finish = self.clock.around(super().start_gather, own, carried)
        return lambda: self.clock.around(finish)

    def sum_replicas(self, tensors: list[torch.Tensor]) -> None:
        if not self.silent:
            self.clock.around(super().sum_replicas, tensors)

    def sum_rows(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        return gradients if self.silent else self.clock.around(super().sum_rows, gradients)

    def counted(self) -> int:
        """Bytes that the exchange brought to this worker so far, by the formulas."""
        return sum(self.received[carried] for carried in EXCHANGED)


def timed_mesh(mesh: Mesh) -> TimedMesh:
    return TimedMesh(**{name: getattr(mesh, name) for name in Mesh.__dataclass_fields__})


def loopback_bytes() -> int:
    """Bytes received on the loopback interface so far; 0 where the system does not tell."""
    try:
        lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split(":")[0].strip() == "lo"), 0)


def some_steps(session: Session, count: int) -> float:
    """Seconds of ``count`` steps of one epoch."""
    made = upcoming_steps(session, 0, range(count))
    started = time.perf_counter()
    for data, rows in made:
        train_step(
            session.models, data, rows, session.present, session.mesh, session.settings, made.meanwhile
        )
    return time.perf_counter() - started


def memories_of(mesh: Mesh) -> dict[str, SharedMemory | None]:
    """The fields of a mesh that workers of one machine exchange through."""
    names = ("modality_memory", "replica_memory", "world_memory")
    return {name: getattr(mesh, name) for name in names}


NO, MEMORY, SOCKETS = "no exchange", "memory", "sockets"


def worker(
    rank: int, world: int, store: str, path: str, settings: dict[str, Any], groups: int, pipe: Any
) -> None:
    """Answer (kind of exchange, steps) with (seconds, seconds in the exchange, bytes by the formula)."""
    use_threads(1 if world > 1 else 2)
    dataset, chosen = open_modalities(Path(path), None), build(("benchmark", settings))
    dataset.modalities = dataset.modalities[:2]
    mesh = one_process(2)
    if world > 1:
        meet_by_file(store, rank, world, 300.0)
        mesh = process_mesh(2, groups=groups)
        if not any(memory is not None and memory.usable for memory in memories_of(mesh).values()):
            raise RunError("expected workers that share memory, got some that cannot")
    sessions: dict[str, Session] = {}
    while (asked := pipe.recv()) is not None:
        kind, steps = asked
        if kind not in sessions:
            memories = dict.fromkeys(memories_of(mesh)) if kind == SOCKETS else memories_of(mesh)
            own = replace(timed_mesh(mesh), silent=kind == NO, **memories)
            sessions[kind] = open_session(dataset, chosen, own, None)
        session = sessions[kind]
        own = cast(TimedMesh, session.mesh)
        before, timer = own.counted(), own.clock.seconds
        seconds = some_steps(session, steps)
        pipe.send((seconds, own.clock.seconds - timer, own.counted() - before))


class Side:
    """The processes of one side."""

    def __init__(self, world: int, path: Path, settings: dict[str, Any], groups: int, directory: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            given = (rank, world, f"{directory}/store-{world}", str(path), settings, groups, there)
            self.processes.append(context.Process(target=worker, args=given, daemon=True))
            self.processes[-1].start()
            self.pipes.append(here)

    def ask(self, kind: str, steps: int) -> list[tuple[float, float, int]]:
        for pipe in self.pipes:
            pipe.send((kind, steps))
        return [pipe.recv() for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(30)


def measure(path: Path, steps: int, options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds per side and round, shares of the exchange by kind and worker, and bytes: counted, and crossed."""
    shares: dict[str, list[list[float]]] = {MEMORY: [], SOCKETS: []}
    crossed, counted = [], []
    with tempfile.TemporaryDirectory() as directory:
        groups = 1 if options.replicas else 2
        one, two = (Side(world, path, settings, groups, directory) for world in (1, 2))

        def exchanging(kind: str) -> float:
            before = loopback_bytes()
            told = two.ask(kind, steps)
            if kind == SOCKETS:
                crossed.append(loopback_bytes() - before)
                counted.append(sum(t[2] for t in told))
            shares[kind].append(sorted(t[1] / t[0] for t in told))
            return max(t[0] for t in told)

        seconds = side_by_side(
            {
                "two workers": lambda: exchanging(MEMORY),
                "two workers, through sockets": lambda: exchanging(SOCKETS),
                "two workers, no exchange": lambda: max(t[0] for t in two.ask(NO, steps)),
                "one process, two threads": lambda: one.ask(MEMORY, steps)[0][0],
            },
            rounds=options.rounds,
        )
        one.close()
        two.close()
    shares = {kind: some[1:] for kind, some in shares.items()}  # the first warms up
    return {"seconds": seconds, "shares": shares, "crossed": crossed[1:], "counted": counted[1:]}


def one_set(path: Path, options: argparse.Namespace, settings: dict[str, Any], report: Report) -> float:
    checked: Settings = build(("benchmark", settings))
    edges = open_modalities(path, None).graph.num_edges
    steps = min(options.steps, -(-edges // checked.training.global_batch_size))
    found = measure(path, steps, options, settings)
    seconds = found["seconds"]
    what = "two replicas, " if options.replicas else ""
    report.say(f"## {path.name}: {what}{steps} steps a round, batch {checked.training.global_batch_size}")
    report.table(
        ("", "ms per step"),
        [(name, spread([s / steps * 1e3 for s in values])) for name, values in seconds.items()],
    )
    quotient = ratio(seconds["two workers, no exchange"], seconds["two workers"])
    report.say(f"Step without exchange / with it: {quotient:.3f}.")
    for side in ("two workers", "two workers, through sockets"):
        throughput = ratio(seconds["one process, two threads"], seconds[side])
        report.say(f"Throughput of {side} / of one process with two threads: {throughput:.3f}.")
    for kind, some in found["shares"].items():
        less, more = (spread([pair[n] for pair in some]) for n in (0, 1))
        report.say(
            f"Starting and awaiting the exchange, {kind}: {less} of the step of the worker that waits less, {more} of "
            "the other's."
        )
    by_formula, on_wire = np.median(found["counted"]), np.median(found["crossed"])
    report.say(
        f"Bytes a step through sockets, both workers: {by_formula / steps:,.0f} by the formula, "
        f"{on_wire / steps:,.0f} crossed the loopback interface ({on_wire / by_formula:.3f} times; packets' headers "
        "and whatever else used it included)."
    )
    report.say()
    return quotient


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument(
        "--dataset", type=Path, action="append", help="data set with two dense modalities; may repeat"
    )
    made.add_argument("--steps", type=int, help="steps a round [60; with --quick 12]")
    made.add_argument("--batch-size", type=int, default=1024)
    made.add_argument("--replicas", action="store_true", help="two replicas of both modalities")
    made.add_argument("--exchange", choices=("float32", "bfloat16"), default="float32")
    options = made.parse_args()
    options.steps = options.steps or (12 if options.quick else 60)
    settings = {"training": {"global_batch_size": options.batch_size, "exchange": options.exchange}}
    name, title = "exchange", "The price of distribution"
    if options.replicas:
        name, title = "exchange_replicas", "The price of distribution: replicas"
    report = Report(name, title, options)
    with tempfile.TemporaryDirectory() as directory:
        made_here = Path(directory, "large")
        if not options.dataset:
            large_dataset(made_here, edges=100_000 if options.quick else 400_000, dims=(384, 384))
        report.close(min(one_set(path, options, settings, report) for path in options.dataset or [made_here]))


if __name__ == "__main__":
    main()
