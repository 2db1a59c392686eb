"""Two workers that map the same data set share its pages: no copy of graph or features per worker."""

from __future__ import annotations

import multiprocessing
import re
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from gnnmr_dist.data.dataset import Dataset, open_dataset
from gnnmr_dist.data.feature_tables import CategoryTable, DenseTable, FeatureTable
from gnnmr_dist.data.synthetic import synthetic_dataset

pytestmark = pytest.mark.multiprocess

Kilobytes = dict[str, dict[str, int]]


def mapped_files(folder: str) -> Kilobytes:
    """What /proc/self/smaps tells of every mapped file below a folder: field -> kB."""
    found: Kilobytes = {}
    current: dict[str, int] = {}
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line.split(maxsplit=5)[5] if line.count("/") else ""
            current = found.setdefault(name, {}) if name.startswith(folder) else {}
        elif line.endswith(" kB"):
            field, size = line.split(":")
            current[field] = current.get(field, 0) + int(size.split()[0])
    return found


def _touch_all(dataset: Dataset, tables: list[FeatureTable]) -> int:
    total = int(dataset.graph.indptr.sum()) + int(dataset.graph.indices.sum())
    for table in tables:
        assert isinstance(table, DenseTable | CategoryTable)
        values = table.values if isinstance(table, DenseTable) else table.codes
        total += int(values.view("u1").sum())
    return total


def _worker(path: str, barrier: Barrier, answers: Any) -> None:
    dataset = open_dataset(path, verify="structure")
    tables = [dataset.features(info.name) for info in dataset.modalities]  # a map lives as long as its table
    total = _touch_all(dataset, tables)
    barrier.wait(60)
    answers.put((total, mapped_files(path)))
    barrier.wait(60)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/PID/smaps is Linux's")
def test_graph_and_features_are_shared_pages(tmp_path: Path) -> None:
    path = str(tmp_path.resolve() / "data")
    synthetic_dataset(path, num_users=4000, num_items=3000, num_modalities=2, interactions_per_user=20)
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_worker, args=(path, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    told = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert told[0][0] == told[1][0]
    for _, files in told:
        names = {name.removeprefix(path + "/"): sizes for name, sizes in files.items()}
        assert {"graph/indices.npy", "modalities/text.arrow"} <= set(names)
        for name in ("graph/indices.npy", "modalities/text.arrow"):
            size = Path(path, name).stat().st_size / 1024
            assert names[name]["Rss"] >= 0.95 * size > 100
        for sizes in names.values():
            assert sizes["Private_Dirty"] == 0
            assert sizes["Private_Clean"] <= 0.05 * sizes["Rss"] + 8
            assert sizes["Pss"] <= 0.6 * sizes["Rss"] + 8
