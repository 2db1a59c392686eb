"""A process that runs jobs one after the other: a task per line in, a result per line out; it ends when its input does.

Each task is two or three commands of the package, told in full, so that what made a result can be run by hand
(``log.txt`` of the job has them). A job that was cut off goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from gnnmr_dist import evaluate, storage, train
from gnnmr_dist.errors import InputError
from gnnmr_dist.runs import CHECKPOINTS, METRICS, RunDirectory

RUN, RESULT, TIMES, LOG = "run", "evaluation-test.json", "times.json", "log.txt"
AMONG_COLD = "evaluation-test-cold.json"


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Train (or go on, or not at all where that is done) and evaluate on test; ``{"error": line}`` where it failed."""
    home = Path(task["home"])
    home.mkdir(parents=True, exist_ok=True)
    with (
        open(home / LOG, "a", encoding="utf-8", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        times: dict[str, Any] = {"commit": task["commit"]}
        for name, step in (("train", _train), ("evaluate", _evaluate)):
            started = time.perf_counter()
            code = step(home, task)
            times[name] = time.perf_counter() - started
            if code != 0:
                return {"error": _last_line(home / LOG)}
        storage.remove_tree(str(home / RUN / CHECKPOINTS))
        _only_epochs(home / RUN / METRICS)
        times["finished"] = time.time()
        storage.write_bytes_atomic(home / TIMES, (json.dumps(times) + "\n").encode())
    return {"seconds": times["train"] + times["evaluate"]}


def _train(home: Path, task: dict[str, Any]) -> int:
    """Train unless the mark says that it is done; resuming a run that ended but has no mark takes a moment."""
    run, mark = home / RUN, home / "trained"
    if mark.exists():
        return 0
    argv = ["--dataset", task["dataset"], "--output", str(run)]
    code = _tell(train, argv + (["--resume"] if _resumable(run) else task["options"]))
    if code == 0:
        mark.touch()
    return code


def _evaluate(home: Path, task: dict[str, Any]) -> int:
    """Evaluate, where items were held out also among them alone: first, for the other result is a job's end."""
    argv = ["--run", str(home / RUN), "--split", "test", "--no-baselines"]
    code = _tell(evaluate, [*argv, "--among", "cold"]) if task["cold"] else 0
    return code or _tell(evaluate, argv)


def _tell(module: Any, argv: list[str]) -> int:
    print(f"$ python -m {module.__name__} {shlex.join(argv)}", flush=True)
    return int(module.main(argv))


def _resumable(run: Path) -> bool:
    """Whether a run has a complete checkpoint; what stands there without one is removed."""
    if not run.exists():
        return False
    try:
        RunDirectory(str(run)).newest()
    except InputError:
        shutil.rmtree(run)
        return False
    return True


def _only_epochs(file: Path) -> None:
    """Drop the records of single steps, which hundreds of runs need not keep."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line).get("kind") == "epoch")
    storage.write_bytes_atomic(file, kept.encode())


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8").splitlines()
    return next(
        (line for line in reversed(lines) if line.startswith(("error:", "failed:"))),
        lines[-1] if lines else "",
    )


def _listen(tasks: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Take tasks until whoever gives them is gone, however that came; then end at once, in the middle of anything."""
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(0)


def main() -> None:
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            answer = perform(task)
        except Exception as error:  # a defect in one job must not end the other three hundred
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
