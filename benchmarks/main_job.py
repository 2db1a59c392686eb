"""The main job on real and planted data: prepare, train with 2 workers (with and without mutual learning), evaluate.

``python benchmarks/main_job.py --data DIR`` (or GNNMR_DATA) runs the user's own commands and writes one Markdown file
with the tables, hardware, command, commit and date. A set whose folder is missing is left out, and the file says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETS = ("steam200k", "se_funds_2022q4", "ml100k")
# Few interactions per user, so that features matter; small steps for a small set (as in the Makefile's demo).
PLANTED = ("--users", "1000", "--items", "600", "--interactions-per-user", "8", "--noise", "0.25")
PLANTED_TRAINING = ("--global-batch-size", "256")
COLUMNS = ("Recall@10", "Recall@20", "NDCG@20", "Coverage@20")


def run(*words: str) -> float:
    """Run ``python -m gnnmr_dist.<words>``; return its seconds; stop here when it fails."""
    started = time.perf_counter()
    print("$ python -m gnnmr_dist." + " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", f"gnnmr_dist.{words[0]}", *words[1:]], check=True)
    return time.perf_counter() - started


def prepare(name: str, data: Path | None, output: Path) -> None:
    if output.exists():
        return
    if name == "planted":
        run("prepare", "--synthetic", *PLANTED, "--output", str(output))
    else:
        recipe = HERE / "datasets" / f"{name}.toml"
        run("prepare", "--recipe", str(recipe), "--source", str(data), "--output", str(output))


def job(name: str, dataset: Path, home: Path, weight: float | None, extra: list[str]) -> dict:
    """Train and evaluate once; returns the test table, times and the last epoch's memory."""
    label = "default" if weight is None else f"lambda-{weight:g}"
    out = home / f"{name}-{label}"
    given = [] if weight is None else ["--distill-weight", str(weight)]
    given += PLANTED_TRAINING if name == "planted" else ()
    seconds = 0.0
    if not (out / "model" / "manifest.json").exists():
        seconds = run(
            "train", "--dataset", str(dataset), "--output", str(out), "--num-workers", "2", *given, *extra
        )
    run("evaluate", "--run", str(out), "--split", "test", "--json", str(out / "test.json"))
    lists = out / "lists.parquet"
    run("recommend", "--run", str(out), "--all", "--k", "20", "--output", str(lists))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if record["kind"] == "epoch"]
    table = json.loads((out / "test.json").read_text())
    return {
        "table": table,
        "seconds": seconds,
        "epochs": epochs,
        "settings": (out / "settings.toml").read_text(),
    }


def oracle(dataset: Path) -> list[str]:
    """What a planted set says of the right answer."""
    planted = json.loads((dataset / "manifest.json").read_text())["provenance"].get("oracle")
    if planted is None:
        return []
    values = ", ".join(f"{name} {value:.4f}" for name, value in planted["recall@20"].items())
    return ["", f"Recall@20 of the truth: {values} (one name = only what that modality's features tell)."]


def markdown(name: str, dataset: Path, with_peers: dict, without: dict) -> list[str]:
    last = with_peers["epochs"][-1]
    every = [epoch["seconds"] for epoch in with_peers["epochs"]]
    peak = max(worker["peak_rss_mib"] for worker in last["memory"])
    lines = [
        f"## {name}",
        "",
        f"{len(every)} epochs, {sum(every) / len(every):.1f} s each, peak {peak:.0f} MiB per worker; "
        f"best epoch {last['best']['epoch']} by validation.",
        *oracle(dataset),
        "",
        "| row | " + " | ".join(COLUMNS) + " | Recall@20, lambda 0 | NDCG@20, lambda 0 |",
        "|---|" + "---:|" * (len(COLUMNS) + 2),
    ]
    for row, values in with_peers["table"].items():
        other = without["table"].get(row, {})
        cells = [f"{values[c]:.4f}" for c in COLUMNS] + [f"{other[c]:.4f}" for c in ("Recall@20", "NDCG@20")]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("GNNMR_DATA"), help="folder of the three sets"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/main_job"), help="where data sets and runs go"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results" / "main_job.md")
    parser.add_argument("--only", nargs="+", choices=("planted", *SETS), default=["planted", *SETS])
    arguments, extra = parser.parse_known_args()
    lines = [
        "# The main job",
        "",
        f"`python benchmarks/main_job.py {' '.join(extra)}` on {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, commit {commit()}, {date.today()}.",
        "Two Ray Train workers; default settings; test split; train items masked; popularity x 1e-6 added to scores.",
        "",
    ]
    for name in arguments.only:
        source = None if name == "planted" else Path(arguments.data or "missing") / name
        if source is not None and not source.is_dir():
            lines += [f"## {name}", "", "Left out: its folder was not given (--data or GNNMR_DATA).", ""]
            continue
        dataset = arguments.work / "data" / name
        prepare(name, source, dataset)
        tables = [job(name, dataset, arguments.work, weight, extra) for weight in (None, 0.0)]
        lines += markdown(name, dataset, *tables)
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text("\n".join(lines))
    print(f"wrote {arguments.results}")


if __name__ == "__main__":
    main()
