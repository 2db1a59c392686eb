"""From a table of interactions to a data set: `prepare` against a straightforward pandas script (pandas_prepare.py).

Both read the same file (ids of 64 bits, some pairs repeated) and the same features, number the ids, drop repeated
pairs, split 8:1:1 at random, build the graph and write everything; ours also checks every value, writes checksums and
syncs to disk. Each side is a process of its own, from start to end: imports count, on both sides. Ours take longer (the
compiler), so pandas is ahead on small tables.

    python benchmarks/bench_prepare.py [--quick] [--rows N] [--folder DIR]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from measure import HERE, Report, parser, ratio, side_by_side, spread

from gnnmr_dist.data.scratch import blocks

RECIPE = """\
name = "bench"
[interactions]
file = "interactions.{suffix}"
duplicates = "first"
[split]
method = "random"
[[modality]]
name = "text"
kind = "dense"
file = "text.npy"
ids = "ids.npy"
"""
DIM = 32


def write_source(folder: Path, rows: int, suffix: str, users: int | None = None) -> None:
    """A table of ``rows`` interactions in no order: rows / 40 users, a quarter as many items, both skewed."""
    folder.mkdir(parents=True)
    num_users = users or rows // 40
    num_items = num_users // 4
    schema = pa.schema([("user", pa.int64()), ("item", pa.int64())])
    path = str(folder / f"interactions.{suffix}")
    writer = pq.ParquetWriter(path, schema) if suffix == "parquet" else pacsv.CSVWriter(path, schema)
    with writer:
        for number, block in enumerate(blocks(rows)):
            random = np.random.default_rng([0, number])
            size = block.stop - block.start
            user = (num_users * random.random(size) ** 2).astype(np.int64)
            item = (num_items * random.random(size) ** 3).astype(np.int64)
            columns = [user * 97 % num_users * 1009 + 10**9, item * 89 % num_items * 307 + 10**6]
            writer.write_table(pa.table(columns, schema=schema))
    np.save(folder / "ids.npy", np.arange(num_items) * 307 + 10**6)
    np.save(
        folder / "text.npy",
        np.random.default_rng(1).standard_normal((num_items, DIM), np.float32),
    )
    (folder / "recipe.toml").write_text(RECIPE.format(suffix=suffix), encoding="utf-8")


def private_peak(process: subprocess.Popen[bytes], found: list[float]) -> None:
    """Put the largest private (anonymous) resident memory of a process, MB, into ``found``, looking every 5 ms."""
    peak = 0.0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            break
        kilobytes = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
        peak = max(peak, *(size / 1024 for size in kilobytes), 0.0)
        time.sleep(0.005)
    found.append(peak)


def run(command: list[str], output: Path, peaks: list[float]) -> float:
    """Seconds of a command that writes ``output``, which is removed again; its peak goes to ``peaks``."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, env=environment, cwd=HERE.parent
    )
    watcher = threading.Thread(target=private_peak, args=(process, peaks))
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - started
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with code {code}")
    shutil.rmtree(output)
    return seconds


def compare(folder: Path, rows: int, suffix: str, rounds: int) -> tuple[list[object], float]:
    """One row of the table, and pandas' time / ours."""
    source, output = folder / f"{rows}-{suffix}", folder / "output"
    write_source(source, rows, suffix)
    ours = ["-m", "gnnmr_dist.prepare", "--recipe", str(source / "recipe.toml"), "--source", str(source)]
    commands = {
        "pandas": ["benchmarks/pandas_prepare.py", str(source), str(output)],
        "prepare": [*ours, "--output", str(output)],
    }
    peaks: dict[str, list[float]] = {name: [] for name in commands}
    seconds = side_by_side(
        {name: lambda n=name: run(commands[n], output, peaks[n]) for name in commands},  # type: ignore[misc]
        rounds=rounds,
    )
    shutil.rmtree(source)
    faster = ratio(seconds["pandas"], seconds["prepare"])
    cells: list[object] = [f"{rows:.0e} {suffix}", *(spread(seconds[name]) for name in commands)]
    cells += [f"{faster:.2f}", *(f"{median(peaks[name]):.0f}" for name in commands)]
    return cells, faster


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rows", type=int, help="interactions [10^7; 4x10^6 with --quick]")
    options.add_argument("--folder", type=Path, help="where the files go meanwhile [a temporary directory]")
    given = options.parse_args()
    rows, rounds = given.rows or (4 * 10**6 if given.quick else 10**7), 3 if given.quick else given.rounds
    report = Report("prepare", "Preparing a data set: ours against a pandas script", given)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        tables = [(rows, "parquet")]
        tables += [] if given.quick else [(rows // 10, "parquet"), (rows, "csv")]
        found = [compare(Path(folder), *table, rounds) for table in tables]
    report.say("Whole processes, seconds: median (least to largest). Peak: private memory, MB.")
    columns = ["table", "pandas, s", "prepare, s", "pandas / prepare", "pandas, MB", "prepare, MB"]
    report.table(columns, [cells for cells, _ in found])
    report.close(found[0][1])


if __name__ == "__main__":
    main()
