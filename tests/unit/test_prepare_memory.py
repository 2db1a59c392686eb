"""Private memory of `prepare` follows users and items, not interactions: four times the rows, the same peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SCRIPT = """
import sys, threading, time
from gnnmr_dist.data import scratch, sorting, tables
from gnnmr_dist.prepare import main

scratch.BLOCK_ROWS = sorting.BUCKET_ROWS = tables._BATCH_ROWS = 1 << 16
peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.is_set():
        with open("/proc/self/status") as status:
            peak = max([peak, *(int(line.split()[1]) for line in status if line.startswith("RssAnon"))])
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
code = main(sys.argv[1:])
done.set()
watcher.join()
print(peak)
sys.exit(code)
"""
RECIPE = """
name = "rows"
[interactions]
file = "rows.parquet"
timestamp = "time"
[split]
method = "random"
[[modality]]
name = "v"
kind = "dense"
file = "v.npy"
ids = "ids.npy"
unknown_ids = "skip"
"""


def peak_megabytes(folder: Path, num_users: int, rows: int) -> float:
    """Of one process that prepares ``rows`` different pairs of users and 6,000 items."""
    folder.mkdir()
    user, item = np.divmod(np.arange(rows) * 6000 * num_users // rows, 6000)
    table = pa.table({"user": user, "item": item, "time": np.arange(rows)})
    pq.write_table(table, folder / "rows.parquet", row_group_size=1 << 16)
    np.save(folder / "ids.npy", np.arange(6000))
    np.save(folder / "v.npy", np.ones((6000, 2), np.float32))
    (folder / "recipe.toml").write_text(RECIPE)
    options = ["--recipe", str(folder / "recipe.toml"), "--source", str(folder), "--output", f"{folder}-out"]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *options], capture_output=True, text=True, check=True)
    return int(run.stdout.splitlines()[-1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/PID/status is Linux's")
def test_four_times_the_interactions_take_the_same_memory(tmp_path: Path) -> None:
    small, large = (peak_megabytes(tmp_path / str(rows), 1500, rows) for rows in (1_500_000, 6_000_000))
    assert large < small + 20  # with scratch arrays in memory it was 61 MB more
