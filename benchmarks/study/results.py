"""What a study has found so far, read from result files alone. Nothing here trains, ranks or opens a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.errors import InputError
from study.datasets import ACTIVITY
from study.plan import Job, Plan
from study.runner import description, home_of, is_done
from study.significance import mean_and_deviation
from study.worker import AMONG_COLD, RESULT, RUN, TIMES

USERS, METRICS = "evaluation-test-users.parquet", "metrics.jsonl"
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """A finished job: the rows of its evaluation, and what it took."""

    job: Job
    home: Path
    rows: dict[str, dict[str, float]]
    content: dict[str, Any]

    @cached_property
    def times(self) -> dict[str, Any]:
        """Seconds of ``train`` and ``evaluate`` of the session that ended it, and the commit; empty where untold."""
        file = self.home / TIMES
        return json.loads(file.read_text()) if file.exists() else {}

    @cached_property
    def epochs(self) -> list[float]:
        """Seconds of each epoch."""
        file = self.home / RUN / METRICS
        lines = file.read_text().splitlines() if file.exists() else []
        records = (json.loads(line) for line in lines)
        return [record["seconds"] for record in records if record["kind"] == "epoch"]

    def users(self, row: str, metric: str) -> tuple[npt.NDArray[Any], FloatArray]:
        """Original ids and values of the evaluated users in one row, [U] each."""
        table = self._users.filter(pa.compute.equal(self._users["row"].cast(pa.string()), row))
        ids = table["user"].to_numpy(zero_copy_only=False)
        return ids, table[metric].to_numpy(zero_copy_only=False).astype(np.float64)

    @cached_property
    def _users(self) -> Any:
        wanted = [f"{metric}@{k}" for metric in ("Recall", "NDCG") for k in self.content["provenance"]["ks"]]
        file = pq.ParquetFile(self.home / RUN / USERS)
        return file.read(["user", "row", *(name for name in wanted if name in file.schema_arrow.names)])


@dataclass(frozen=True)
class Entry:
    """One line of a table: a row of a method's evaluations over seeds, of which ``planned`` were asked for."""

    label: str
    method: str
    row: str
    results: tuple[Result, ...]
    planned: int
    headline: bool = True

    def values(self, metric: str) -> list[float]:
        """Of every finished seed."""
        return [result.rows[self.row][metric] for result in self.results]

    def users(self, metric: str) -> tuple[npt.NDArray[Any], FloatArray]:
        """Ids and each user's mean over the finished seeds [U].

        Raises:
            InputError: the seeds were not evaluated on the same users.
        """
        found = [result.users(self.row, metric) for result in self.results]
        ids = found[0][0]
        for other, _ in found[1:]:
            if not np.array_equal(ids, other):
                raise InputError(
                    f"{self.results[0].home}: expected the same users for every seed, got others"
                )
        return ids, np.mean([values for _, values in found], axis=0)

    def cell(self, metric: str) -> str:
        """``.1234 ± .0012`` (``.1234`` of one seed), ``not run`` of none."""
        return number_cell(self.values(metric) if self.results else [])

    @property
    def seeds(self) -> str:
        """How many seeds the values are from, where that is fewer than planned with what was planned."""
        done = len(self.results)
        return str(done) if done >= self.planned else f"{done} of {self.planned}"


@dataclass
class Findings:
    """All results of a plan that are in OUTPUT; results of other settings under the same name do not count."""

    plan: Plan
    output: Path
    _read: dict[Job, Result | None] = field(default_factory=dict)

    def get(self, job: Job) -> Result | None:
        """The result of a job, None if it has none (yet)."""
        if job not in self._read:
            self._read[job] = self._open(job)
        return self._read[job]

    def _open(self, job: Job) -> Result | None:
        home = home_of(self.output, job)
        if not is_done(self.output, job):
            return None
        if json.loads((home / "job.json").read_text()) != description(self.plan, job):
            return None
        content = json.loads((home / RUN / RESULT).read_text())
        return Result(job, home, _with_cold(content["rows"], home / RUN / AMONG_COLD), content)

    def entries(self, jobs: Iterable[Job]) -> list[Entry]:
        """The lines of a table from jobs of one set and variant: methods in order."""
        groups: dict[str, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.method, []).append(job)
        return [entry for method, some in groups.items() for entry in self._method(method, some)]

    def _method(self, method: str, jobs: Sequence[Job]) -> list[Entry]:
        results = tuple(found for job in jobs if (found := self.get(job)) is not None)
        if not results:
            return [Entry(method, method, "", (), len(jobs))]
        rows = [row for row in results[0].rows if row == method or row not in CLOSED_FORM]
        main = headline(method, rows)
        return [
            Entry(
                method if row == method else f"{method}, {row}", method, row, results, len(jobs), row == main
            )
            for row in rows
        ]

    def activity(self, set_name: str, variant: str = "own") -> dict[Any, int]:
        """Train interactions of every user by original id; empty where the variant was not made."""
        file = self.output / "sets" / set_name / variant / ACTIVITY
        if not file.exists():
            return {}
        table = pq.read_table(file)
        return dict(zip(table["user"].to_pylist(), table["train"].to_pylist(), strict=True))

    def sessions(self) -> list[dict[str, Any]]:
        """Records of all calls of the runner, oldest first."""
        return [json.loads(file.read_text()) for file in sorted((self.output / "sessions").glob("*.json"))]

    def missing(self) -> list[Job]:
        """Jobs of the plan without a result."""
        return [job for job in self.plan.ranked() if self.get(job) is None]


CHANCE = "Chance"
"""Beside the metrics among cold items: the Recall of a random order."""


def among_cold(metric: str) -> str:
    """The name of a metric of the ranking of cold items alone."""
    return f"{metric} among cold"


def _with_cold(rows: dict[str, dict[str, float]], file: Path) -> dict[str, dict[str, float]]:
    """Rows with the metrics of the ranking among cold items, where there was one."""
    if not file.exists():
        return rows
    content = json.loads(file.read_text())
    origin, merged = content["provenance"], {}
    chance = {f"{CHANCE}@{k}": min(1.0, k / origin["items_ranked"]) for k in origin["ks"]}
    for row, values in rows.items():
        merged[row] = values | {among_cold(n): value for n, value in (content["rows"][row] | chance).items()}
    return merged


def headline(method: str, rows: Sequence[str]) -> str:
    """The row that stands for a method: its own name, else the fusion, else the concatenation, else the first."""
    return next((row for row in (method, "fused", "concatenation") if row in rows), rows[0])


def number_cell(values: Sequence[float]) -> str:
    """``mean ± deviation`` over seeds with four decimals; the deviation only of two or more."""
    if not values:
        return "not run"
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.4f}" if math.isnan(deviation) else f"{mean:.4f} ± {deviation:.4f}"
