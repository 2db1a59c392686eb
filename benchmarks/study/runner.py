"""Running a plan: jobs to worker processes, the most valuable first, within a budget, with the time that is left.

OUTPUT/jobs/NAME/  job.json (what it is), log.txt, times.json, run/ (a run directory; its evaluation-test.json = done)
OUTPUT/sets/SET/VARIANT/  data sets      OUTPUT/sessions/NNN.json  one per call: command, hardware, commit, times
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from measure import commit, hardware

from gnnmr_dist import storage
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.errors import InputError
from study.datasets import ensure
from study.plan import COLD, Job, Plan
from study.worker import RESULT, RUN, TIMES

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def home_of(output: Path, job: Job) -> Path:
    """A job's directory."""
    return output / "jobs" / job.name


def is_done(output: Path, job: Job) -> bool:
    """Whether the job's result is there."""
    return (home_of(output, job) / RUN / RESULT).exists()


def description(plan: Plan, job: Job) -> dict[str, Any]:
    """What a job is, as JSON: a result counts for this job only while this is the same."""
    content = {"set": job.set, "variant": job.variant, "options": options(plan, job)}
    return dict(json.loads(json.dumps(content)))


def options(plan: Plan, job: Job) -> list[str]:
    """The job's settings as options of ``train``."""
    words: list[str] = []
    for name, value in plan.given(job).items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return words


def check_jobs(plan: Plan, output: Path) -> None:
    """Refuse an output that holds another job under the name of one of these; raises InputError."""
    for job in plan.ranked():
        file = home_of(output, job) / "job.json"
        if file.exists() and json.loads(file.read_text()) != description(plan, job):
            raise InputError(
                f"{file}: expected the job of this plan, got one with other settings: another --output, "
                "please"
            )


@dataclass
class Estimates:
    """Seconds of a job: as measured on the same group, else the plan's guess, scaled by what its set has shown."""

    plan: Plan
    seen: dict[str, list[float]] = field(default_factory=dict)
    scales: dict[str, list[float]] = field(default_factory=dict)

    def add(self, job: Job, seconds: float) -> None:
        """Learn from one that is done."""
        self.seen.setdefault(job.group, []).append(seconds)
        self.scales.setdefault(job.set, []).append(seconds / self.plan.guess(job))

    def seconds(self, job: Job) -> float:
        """What one that is not done may take."""
        if known := self.seen.get(job.group):
            return sum(known) / len(known)
        return self.plan.guess(job) * median(self.scales.get(job.set, [1.0]))


def measured(plan: Plan, output: Path) -> Estimates:
    """Estimates from all results that are there."""
    found = Estimates(plan)
    for job in plan.ranked():
        file = home_of(output, job) / TIMES
        if is_done(output, job) and file.exists():
            times = json.loads(file.read_text())
            found.add(job, times["train"] + times["evaluate"])
    return found


class Worker:
    """A process of :mod:`study.worker` with one thread for everything."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).resolve().parents[1]), *sys.path]
        environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "study.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def perform(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one task; raises BrokenPipeError or ValueError when the process is gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.communicate()


class Study:
    """One call of the runner: hands out jobs, keeps the session's record, tells how far it is."""

    def __init__(
        self, plan: Plan, output: Path, data: Path | None, *, budget: float | None, argv: Sequence[str]
    ) -> None:
        """``budget`` in seconds, None = no end; raises InputError where the output belongs to another plan or study."""
        check_jobs(plan, output)
        self.plan, self.output, self.data, self.budget = plan, output, data, budget
        self.estimates = measured(plan, output)
        ready = [job for job in plan.ranked() if self._source_is_there(job.set)]
        self.waiting = [job for job in ready if not is_done(output, job)]
        self.total, self.running = len(ready), dict[int, tuple[Job, float]]()
        self.left_out: list[Job] = []
        self.failed: dict[str, str] = {}
        self.digests: dict[tuple[str, str], set[str]] = {}
        self.started, self.lock, self.processes = time.time(), threading.Lock(), 1
        self.session = self._new_session(argv)

    def _source_is_there(self, name: str) -> bool:
        return self.plan.sets[name].recipe is None or self._source(name) is not None

    def _source(self, name: str) -> Path | None:
        folder = None if self.data is None else self.data / name
        return folder if folder is not None and folder.is_dir() else None

    def _new_session(self, argv: Sequence[str]) -> Path:
        folder = self.output / "sessions"
        folder.mkdir(parents=True, exist_ok=True)
        self.record = {
            "command": shlex.join(["python", "benchmarks/paper.py", *argv]),
            "hardware": hardware(),
            "commit": commit(),
            "started": self.started,
            "absent": [name for name in self.plan.sets if not self._source_is_there(name)],
        }
        return folder / f"{len(list(folder.glob('*.json'))) + 1:03d}.json"

    def run(self, processes: int) -> None:
        """Run all that is left, ``processes`` jobs at a time; returns when there is nothing more to start."""
        self.processes = processes
        with open(self.output / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{self.output}: expected an output no study is running in, got one that has"
                ) from None
            self._note()
            threads = [
                threading.Thread(target=self._serve, args=(number,), daemon=True)
                for number in range(min(processes, max(len(self.waiting), 1)))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self._note()

    def _serve(self, number: int) -> None:
        worker = Worker()
        try:
            while (job := self._take(number)) is not None:
                try:
                    answer = worker.perform(self._task(job))
                except (OSError, ValueError, InputError) as error:
                    answer = {
                        "error": str(error) if isinstance(error, InputError) else "the worker process died"
                    }
                    worker.close()
                    worker = Worker()
                self._finish(number, job, answer)
        finally:
            worker.close()

    def _take(self, number: int) -> Job | None:
        """The most valuable job that the budget still has room for; what it has no room for is left out."""
        with self.lock:
            while self.waiting:
                job = self.waiting.pop(0)
                spent = time.time() - self.started
                if self.budget is None or spent + self.estimates.seconds(job) <= self.budget:
                    self.running[number] = (job, time.time())
                    return job
                self.left_out.append(job)
            return None

    def _task(self, job: Job) -> dict[str, Any]:
        with self.lock:  # two jobs may want the same data set
            dataset = ensure(
                self.plan.sets[job.set], job.variant, self._source(job.set), self.output / "sets"
            )
            self._check_digest(job, dataset)
        home = home_of(self.output, job)
        home.mkdir(parents=True, exist_ok=True)
        content = json.dumps(description(self.plan, job)) + "\n"
        storage.write_bytes_atomic(home / "job.json", content.encode())
        return {
            "home": str(home.absolute()),
            "dataset": str(dataset.absolute()),
            "options": options(self.plan, job),
            "cold": job.variant == COLD,
            "commit": self.record["commit"],
        }

    def _check_digest(self, job: Job, dataset: Path) -> None:
        """Refuse to put results of other data beside those that are there; raises InputError."""
        key = (job.set, job.variant)
        if key not in self.digests:
            self.digests[key] = {open_dataset(dataset, verify="structure").digest}
            for other in self.plan.ranked():
                if (other.set, other.variant) == key and is_done(self.output, other):
                    content = json.loads((home_of(self.output, other) / RUN / RESULT).read_text())
                    self.digests[key].add(content["provenance"]["data_digest"])
        if len(self.digests[key]) > 1:
            short = ", ".join(sorted(digest[:12] for digest in self.digests[key]))
            raise InputError(
                f"{dataset}: expected the data of the results that are there, got digests {short}"
            )

    def _finish(self, number: int, job: Job, answer: Mapping[str, Any]) -> None:
        with self.lock:
            seconds = time.time() - self.running.pop(number)[1]
            if "error" in answer:
                outcome = f"FAILED: {answer['error']}"
                # a session is kept with the report, which says nothing of the machine's folders
                self.failed[job.name] = answer["error"].replace(str(self.output.absolute()), "OUTPUT")
            else:
                self.estimates.add(job, seconds)
                outcome = f"{seconds:.0f} s"
            done = self.total - len(self.waiting) - len(self.running) - len(self.left_out)
            print(f"[{done}/{self.total}] {job.name}: {outcome}; {_span(self.time_left())} left", flush=True)
            self._note()

    def time_left(self) -> float:
        """Seconds until all is done, at most what the budget leaves."""
        rest = sum(self.estimates.seconds(job) for job in self.waiting)
        for job, started in self.running.values():
            rest += max(0.0, self.estimates.seconds(job) - (time.time() - started))
        rest /= self.processes
        return (
            rest if self.budget is None else min(rest, max(0.0, self.budget - (time.time() - self.started)))
        )

    def _note(self) -> None:
        now = {
            **self.record,
            "seconds": time.time() - self.started,
            "failed": self.failed,
            "left_out": [job.name for job in self.left_out],
        }
        storage.write_bytes_atomic(self.session, (json.dumps(now, indent=1) + "\n").encode())


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
