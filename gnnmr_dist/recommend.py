"""``python -m gnnmr_dist.recommend``: the best items of given users, or of all, with original ids and titles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gnnmr_dist import storage
from gnnmr_dist.approximate import SAMPLE, ApproximateIndex
from gnnmr_dist.cli import Parser, guarded
from gnnmr_dist.errors import InputError, bad_input
from gnnmr_dist.fusion import LINEAR
from gnnmr_dist.loaded import LoadedRun, open_run
from gnnmr_dist.new_items import NewItems, read_new_items, score_with_new_items
from gnnmr_dist.ranking import (
    EmbeddingScorer,
    Float32Array,
    Int64Array,
    ItemLists,
    rank_top_k,
    train_counts,
    train_items,
    users_at_once,
)

ROWS_PER_BLOCK = 1 << 18
"""Recommendations held at once when writing a file."""

Write = Callable[[Any], None]


class Recommender:
    """Top k items of a finished run, by one row of it, among known and new items."""

    def __init__(
        self,
        run: LoadedRun,
        k: int = 20,
        row: str | None = None,
        *,
        new_items: NewItems | None = None,
        include_seen: bool = False,
    ) -> None:
        """Embed and combine; raises InputError for an unknown row or a k outside 1..number of items.

        ``row`` None = the run's best ensemble.
        """
        row = run.best_row if row is None else row
        self.run, self.row, self.k = run, row, k
        dataset = run.dataset
        ids, titles = pa.array(dataset.item_ids), pa.array(dataset.item_titles, pa.string())
        cold = train_counts(dataset.graph) == 0
        if new_items is not None:
            ids, titles = pa.concat_arrays([ids, new_items.ids]), pa.concat_arrays([titles, new_items.titles])
            cold = np.concatenate([cold, np.ones(len(new_items.ids), np.bool_)])
        self._ids, self._titles, self._cold = ids, titles, cold
        if not 1 <= k <= len(ids):
            raise InputError(f"k: expected 1..{len(ids)} (the number of items), got {k}")
        run.require_row(row)
        self._scorer = (
            run.scorer(row) if new_items is None else score_with_new_items(run, row, new_items.rows)
        )
        nothing = ItemLists(np.zeros(dataset.num_users + 1, np.int64), np.zeros(0, np.int64))
        self._seen = nothing if include_seen else train_items(dataset.graph)
        self._user_ids = pa.array(dataset.user_ids)
        self._index: ApproximateIndex | None = None
        self.note = ""

    @property
    def schema(self) -> Any:
        """Columns of :meth:`table`; its metadata tell what an approximate index is worth, if there is one."""
        return pa.schema(
            [
                ("user", self._user_ids.type),
                ("rank", pa.int32()),
                ("item", self._ids.type),
                ("title", pa.string()),
                ("score", pa.float32()),
                ("cold", pa.bool_()),
            ],
            metadata={"ranking": self.note} if self.note else None,
        )

    def approximate(self, users: Int64Array, recall: float) -> str:
        """Search an approximate index from now on; what it is, in one line.

        Args:
            users: those to recommend to; a sample of them measures the recall.
            recall: the mean share of the exact lists to reach, above 0 and up to 1.

        Raises:
            InputError: ``recall`` is out of range, or FAISS is not installed.
        """
        if not isinstance(self._scorer, EmbeddingScorer):
            raise InputError(
                "--approximate: expected a row that has embeddings, such as concatenation, got one that has none"
            )
        index = ApproximateIndex(self._scorer, users, self._seen, self.k, recall)
        self._index = index
        self.note = (
            f"approximate: {index.recall:.4f} of the exact lists of {min(SAMPLE, users.size)} sampled users found, "
            f"reading {index.probes} of {index.num_lists} lists of items"
        )
        return self.note

    def _rank(self, users: Int64Array) -> tuple[Int64Array, Float32Array]:
        if self._index is not None:
            return self._index.rank(users)
        block = users_at_once(self._scorer, len(self._ids))
        return rank_top_k(self._scorer, users, self._seen, self.k, block=block)

    def table(self, users: Int64Array) -> Any:
        """Recommendations of user numbers [n], as an Arrow table of up to k rows each, users in the order given.

        ``user`` and ``item`` are original ids, ``rank`` counts from 1, ``cold`` marks items without train interactions.
        """
        items, scores = self._rank(users)
        listed, place = np.nonzero(items >= 0)
        numbers = items[listed, place]
        columns = [
            self._user_ids.take(pa.array(users[listed])),
            pa.array(place + 1, pa.int32()),
            self._ids.take(pa.array(numbers)),
            self._titles.take(pa.array(numbers)),
            pa.array(scores[listed, place]),
            pa.array(self._cold[numbers]),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)


def parser() -> Parser:
    """The command line."""
    made = Parser(prog="python -m gnnmr_dist.recommend", description=__doc__.split(":", 1)[1].strip())
    made.add_argument("--run", metavar="DIR", required=True, help="run directory of gnnmr_dist.train")
    who = made.add_mutually_exclusive_group(required=True)
    who.add_argument("--users", metavar="ID", nargs="+", help="original ids of users")
    who.add_argument("--users-file", metavar="FILE", type=Path, help="text file, one original user id a line")
    who.add_argument("--all", action="store_true", help="every user of the data set (needs --output)")
    made.add_argument("--k", type=int, default=20, help="length of each list [20]")
    made.add_argument(
        "--row",
        help="ensemble or modality to rank by [fused if the run has a linear peer, else concatenation]",
    )
    made.add_argument("--new-items", metavar="FILE", help="Parquet file of items the data set does not know")
    made.add_argument(
        "--approximate",
        metavar="RECALL",
        type=float,
        nargs="?",
        const=0.95,
        help="search an approximate index (needs faiss-cpu) that finds this share of the exact lists [0.95]",
    )
    made.add_argument("--include-seen", action="store_true", help="also recommend the user's train items")
    made.add_argument("--output", metavar="FILE", help="where to write, .parquet or .csv [the terminal]")
    made.add_argument("--dataset", metavar="DIR", help="where the data set is [where it was at training]")
    return made


def command(argv: Sequence[str] | None) -> None:
    """Parse, check, then recommend."""
    arguments = parser().parse_args(argv)
    if arguments.output is not None:
        _check_output(arguments.output)
    elif arguments.all:
        raise InputError(
            "--all: expected --output FILE with it, got none: a terminal is no place for all users"
        )
    run = open_run(arguments.run, arguments.dataset)
    users = _users(run, arguments)
    new = None if arguments.new_items is None else read_new_items(arguments.new_items, run.dataset)
    row = arguments.row
    if row is None and arguments.approximate is not None and run.closed_form is None:
        row = "concatenation"  # the best that an index can hold
    recommender = Recommender(run, arguments.k, row, new_items=new, include_seen=arguments.include_seen)
    notes = [*(new.notes if new else ()), *_unknown_users(run, recommender.row, users)]
    if arguments.approximate is not None:
        notes.append(recommender.approximate(users, arguments.approximate))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.output is None:
        print(_text(recommender.table(users)))
        return
    rows = write_recommendations(recommender, users, arguments.output)
    print(f"{rows} recommendations for {users.size} users are in {arguments.output}")


def _users(run: LoadedRun, arguments: Any) -> Int64Array:
    if arguments.all:
        return np.arange(run.dataset.num_users)
    ids = arguments.users
    if ids is None:
        try:
            lines = arguments.users_file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise bad_input(arguments.users_file, "a text file of user ids", error.strerror) from None
        except UnicodeDecodeError:
            raise bad_input(arguments.users_file, "UTF-8 text, one user id a line", "other bytes") from None
        ids = [line.strip() for line in lines if line.strip()]
        if not ids:
            raise bad_input(arguments.users_file, "at least one user id", "none")
    return run.dataset.user_number(list(dict.fromkeys(ids)))


def _unknown_users(run: LoadedRun, row: str, users: Int64Array) -> list[str]:
    count = int((run.dataset.graph.degree()[users] == 0).sum())
    if not count:
        return []
    linear = run.closed_form is not None or row == LINEAR
    what = "popularity" if linear else "the mean user's embedding"
    return [f"{count} of {users.size} users have no train interactions: they get {what}"]


def _check_output(output: str) -> None:
    if not output.endswith((".parquet", ".csv")):
        raise InputError(f"--output: expected a name that ends with .parquet or .csv, got {output!r}")
    storage.require_writable(output)


def write_recommendations(recommender: Recommender, users: Int64Array, output: storage.Address) -> int:
    """Write the recommendations of ``users`` block by block, in bounded memory; returns the number of rows.

    An existing file is replaced at the end, as a whole. Progress goes to a terminal on standard error.

    Raises:
        InputError: the file cannot be written.
    """
    step, rows = max(1, ROWS_PER_BLOCK // recommender.k), 0
    console = Console(stderr=True)
    columns = (
        TextColumn("users"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    try:
        with (
            storage.staged_file(output) as staged,
            _writer(staged, str(output), recommender.schema) as write,
            Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
        ):
            task = progress.add_task("users", total=users.size)
            for start in range(0, users.size, step):
                table = recommender.table(users[start : start + step])
                write(table)
                rows += table.num_rows
                progress.advance(task, min(step, users.size - start))
    except OSError as error:
        raise bad_input(str(output), "a place to write a file", error.strerror or str(error)) from None
    return rows


@contextmanager
def _writer(staged: Path, output: str, schema: Any) -> Iterator[Write]:
    if output.endswith(".csv"):
        with csv.CSVWriter(str(staged), schema) as writer:
            yield writer.write_table
    else:
        with pq.ParquetWriter(str(staged), schema, compression="zstd") as writer:
            yield writer.write_table


def _text(table: Any) -> str:
    """The table for a reader: each user's list under the user's id."""
    rows = table.to_pylist()
    width = max((len(str(row["item"])) for row in rows), default=0)
    lines: list[str] = []
    for row in rows:
        if row["rank"] == 1:
            lines += ["", f"user {row['user']}"] if lines else [f"user {row['user']}"]
        title = "" if str(row["item"]) == row["title"] else f"  {row['title']}"
        cold = "  (cold: no train interactions)" if row["cold"] else ""
        lines.append(f"{row['rank']:>4}  {row['score']:>9.4f}  {row['item']!s:<{width}}{title}{cold}")
    return "\n".join(lines) or "nothing to recommend: these users have seen every item"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return guarded(command, argv)


if __name__ == "__main__":
    sys.exit(main())
