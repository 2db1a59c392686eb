"""``python -m gnnmr_dist.evaluate``: full ranking of a finished run's modalities and ensembles, beside baselines."""

from __future__ import annotations

import json
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist import storage
from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.checkpoint import versions
from gnnmr_dist.cli import Parser, guarded
from gnnmr_dist.closed_form import choices_of, evaluate_baselines
from gnnmr_dist.ease import BaselineSkipped
from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.evaluation import RowResult
from gnnmr_dist.fusion import FUSED, LINEAR
from gnnmr_dist.loaded import (
    AMONG,
    EvaluationJob,
    LoadedRun,
    Protocol,
    check_protocol,
    evaluate_model,
    evaluate_on_worker,
    evaluated,
    open_run,
)
from gnnmr_dist.metrics import per_user_table
from gnnmr_dist.reporting import markdown_table
from gnnmr_dist.runs import SETTINGS

METRICS = ("Recall", "NDCG", "Precision", "HitRate", "MRR", "Coverage", "AveragePopularity")
ACCURACY = METRICS[:5]

Tell = Callable[[str, RowResult], None]


@dataclass
class Results:
    """What an evaluation found, row by row in the order of the tables."""

    protocol: Protocol
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, result: RowResult) -> None:
        """Take one row."""
        order = [f"{metric}@{k}" for k in self.protocol.ks for metric in METRICS]
        self.rows[name] = {metric: result.means[metric] for metric in order}


def evaluate_run(
    run: LoadedRun,
    protocol: Protocol,
    *,
    baselines: bool = True,
    num_workers: int = 0,
    tell: Tell | None = None,
) -> Results:
    """Evaluate every row of a run: its modalities, the ensembles and, unless told otherwise, the baselines.

    A run of one of these has it as its own row, fitted by the same function.

    With ``num_workers`` W > 0 the model's rows are embedded and ranked by W Ray Train workers, with the same bits as by
    this process; baselines are always fitted and ranked here. ``tell`` takes each row as it comes.

    Raises:
        InputError: the protocol does not fit the data, or the workers can never be placed.
        RunError: a worker failed.
    """
    check_protocol(run.dataset, protocol)
    results = Results(protocol, choices=choices_of(run))
    for name, result in _model_rows(run, protocol, num_workers):
        results.add(name, result)
        if tell is not None:
            tell(name, result)
    if not baselines:
        return results
    others = [name for name in CLOSED_FORM if name not in run.names]
    for found in evaluate_baselines(run.dataset, protocol, run.settings.evaluation.select_metric, others):
        if found.choice:
            results.choices[found.name] = found.choice
        if isinstance(found.result, BaselineSkipped):
            results.skipped[found.name] = found.result.reason
            continue
        results.add(found.name, found.result)
        if tell is not None:
            tell(found.name, found.result)
    return results


def _model_rows(run: LoadedRun, protocol: Protocol, num_workers: int) -> Iterator[tuple[str, RowResult]]:
    if num_workers < 0:
        raise InputError(f"num_workers: expected 0 or more, got {num_workers}")
    here = [
        row for row in run.rows if row in (LINEAR, FUSED)
    ]  # the linear peer is fitted once, in this process
    if num_workers == 0:
        yield from evaluate_model(run, protocol, run.rows)
        return
    away = tuple(row for row in run.rows if row not in here)
    from gnnmr_dist.launch import (
        Work,
        run_on_mesh,
    )  # Ray takes seconds to import and is not needed without workers

    changed = {"num_workers": num_workers, "modality_groups": 0, "min_workers": 0}
    cluster = run.settings.cluster.model_copy(update=changed)
    job = EvaluationJob(run.directory.address, run.dataset.path, protocol, away)
    scratch = run.directory.place(f".evaluation-{uuid.uuid4().hex[:8]}")
    yield from run_on_mesh(Work(evaluate_on_worker, job, len(run.names)), scratch, cluster)
    yield from evaluate_model(run, protocol, here)


def provenance(run: LoadedRun, results: Results) -> dict[str, Any]:
    """What made the numbers: run, data, split, masking, users, choices, versions."""
    info, state, protocol = run.model.info, run.model.state, results.protocol
    asked = evaluated(run.dataset, protocol)
    users, num_items = asked.relevant.users, run.dataset.num_items
    return {
        "run": run.directory.address,
        "settings": run.directory.place(SETTINGS),
        "seed": run.settings.training.seed,
        "dataset": run.dataset.path,
        "dataset_name": run.dataset.name,
        "data_digest": info.data_digest,
        "split": protocol.split,
        "masked": ["train", "valid"] if protocol.mask_valid else ["train"],
        "among": protocol.among,
        "items_ranked": num_items if asked.kept is None else int(asked.kept.sum()),
        "ks": list(protocol.ks),
        "users_evaluated": int(users.size),
        "users_without_train": int((run.dataset.graph.degree()[users] == 0).sum()),
        "best_epoch": state.best_epoch,
        "selected_by": f"validation {run.settings.evaluation.select_metric} of {run.settings.evaluation.select_row}",
        "choices": results.choices,
        "versions": versions(),
        "versions_at_training": dict(info.versions),
    }


def report(results: Results, origin: Mapping[str, Any]) -> str:
    """The results as a Markdown page: one table per cut-off, then where the numbers come from."""
    among = "" if origin["among"] == "all" else f", {origin['among']} items"
    lines = [f"# {origin['dataset_name']}: {origin['split']}{among}", ""]
    for k in results.protocol.ks:
        metrics = [f"{metric}@{k}" for metric in METRICS]
        best = {f"{metric}@{k}" for metric in ACCURACY}
        lines += [markdown_table(results.rows, metrics, "row", best=best), ""]
    lines += [*_skipped_lines(results), *_origin_lines(origin)]
    return "\n".join(lines) + "\n"


def _skipped_lines(results: Results) -> list[str]:
    return [f"- {name}: {reason}" for name, reason in results.skipped.items()]


def _origin_lines(origin: Mapping[str, Any]) -> list[str]:
    cold, items, them = origin["users_without_train"], "all items", ""
    if origin["among"] == "cold":
        items, them = f"the {origin['items_ranked']} items without a train interaction", " among them"
    release = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    return [
        f"- Full ranking of {items}; masked: {' and '.join(origin['masked'])} items of each user."
        + (
            " Validation items stay in the ranking."
            if origin["split"] == "test" and len(origin["masked"]) == 1
            else ""
        ),
        f"- Means over {origin['users_evaluated']} users with at least one {origin['split']} item{them}; "
        f"{cold} have no train interactions: networks give them the mean user's embedding, methods in closed form "
        "popularity.",
        f"- Model: epoch {origin['best_epoch']}, selected by {origin['selected_by']}; seed {origin['seed']}; "
        f"settings: {origin['settings']}.",
        *(f"- {name}: {choice}." for name, choice in origin["choices"].items()),
        f"- Data: {origin['dataset']}, digest {origin['data_digest']}.",
        f"- Versions: {release}.",
        "- Bold: best of its column. Definitions: docs/metrics.md.",
    ]


def summary(results: Results) -> str:
    """The table for a terminal: Recall and NDCG at every cut-off."""
    metrics = [f"{metric}@{k}" for metric in ("Recall", "NDCG") for k in results.protocol.ks]
    table = markdown_table(results.rows, metrics, "row", best=metrics)
    return "\n".join([table, *_skipped_lines(results)])


@contextmanager
def _per_user(run: LoadedRun, protocol: Protocol, output: str) -> Iterator[Tell]:
    """A function that appends one row's users to the Parquet file ``output``, which appears when all are written."""
    relevant = evaluated(run.dataset, protocol).relevant
    user_ids = pa.array(run.dataset.user_ids).take(pa.array(relevant.users))
    with storage.staged_file(output) as staged:
        writers: list[Any] = []

        def append(name: str, result: RowResult) -> None:
            table = per_user_table(relevant.users, relevant.items, result.per_user)
            table = table.rename_columns(["user", "num_items", *table.column_names[2:]])
            table = table.set_column(0, "user", user_ids)
            table = table.add_column(1, "row", pa.array([name] * table.num_rows).dictionary_encode())
            if not writers:
                writers.append(pq.ParquetWriter(str(staged), table.schema, compression="zstd"))
            writers[0].write_table(table)

        try:
            yield append
        finally:
            for writer in writers:
                writer.close()


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m gnnmr_dist.evaluate", description=__doc__.split(":", 1)[1].strip())
    made.add_argument("--run", metavar="DIR", required=True, help="run directory of gnnmr_dist.train")
    made.add_argument(
        "--split", required=True, choices=("valid", "test"), help="whose interactions are to be found"
    )
    made.add_argument("--dataset", metavar="DIR", help="where the data set is [where it was at training]")
    made.add_argument("--ks", metavar="K", type=int, nargs="+", help="cut-offs [those of the run's settings]")
    made.add_argument(
        "--mask-valid", action="store_true", help="on test: also mask each user's validation items"
    )
    made.add_argument(
        "--among",
        choices=AMONG,
        default="all",
        help="items ranked: all, or cold, those without a train interaction [all]",
    )
    made.add_argument(
        "--num-workers", metavar="W", type=int, default=0, help="Ray Train workers; 0 = this process [0]"
    )
    made.add_argument("--no-baselines", action="store_true", help="leave popularity, item-knn and ease out")
    made.add_argument("--json", metavar="FILE", help="also write {row: {metric: value}} there")
    return made


def command(argv: Sequence[str] | None) -> None:
    """Parse, check, evaluate, then write everything."""
    arguments = parser().parse_args(argv)
    if arguments.json is not None:
        storage.require_writable(arguments.json)
    run = open_run(arguments.run, arguments.dataset, verify="full")
    ks = tuple(arguments.ks or run.settings.evaluation.ks)
    protocol = Protocol(arguments.split, ks, arguments.mask_valid, arguments.among)
    check_protocol(run.dataset, protocol)
    what = protocol.split if protocol.among == "all" else f"{protocol.split}-{protocol.among}"
    place = {
        end: run.directory.place(f"evaluation-{what}{end}") for end in (".md", ".json", "-users.parquet")
    }
    for output in place.values():
        storage.require_writable(output)
    started = time.perf_counter()

    def tell(name: str, result: RowResult) -> None:
        append(name, result)
        print(f"ranked {name}, {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)

    try:
        with _per_user(run, protocol, place["-users.parquet"]) as append:
            results = evaluate_run(
                run,
                protocol,
                baselines=not arguments.no_baselines,
                num_workers=arguments.num_workers,
                tell=tell,
            )
        origin = provenance(run, results)
        content = {"rows": results.rows, "skipped": results.skipped, "provenance": origin}
        storage.write_bytes_atomic(place[".json"], _json(content))
        storage.write_bytes_atomic(place[".md"], report(results, origin).encode())
        if arguments.json is not None:
            storage.write_bytes_atomic(arguments.json, _json(results.rows))
    except OSError as error:
        raise bad_input(error.filename or run.directory.address, "a place to write", error.strerror) from None
    _conclude(run, results, origin, list(place.values()))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _conclude(run: LoadedRun, results: Results, origin: Mapping[str, Any], files: Sequence[str]) -> None:
    print(summary(results))
    print("\n".join(_origin_lines(origin)[:2]))
    for name, choice in results.choices.items():
        print(f"- {name}: {choice}.")
    print("all metrics, provenance and per-user values are in")
    print("\n".join(f"  {file}" for file in files))
    user = shlex.quote(str(run.dataset.user_ids[0]))
    print(
        f"next: python -m gnnmr_dist.recommend --run {shlex.quote(run.directory.address)} --users {user} --k 10"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return guarded(command, argv)


if __name__ == "__main__":
    sys.exit(main())
