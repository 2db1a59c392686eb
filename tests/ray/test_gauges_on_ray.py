"""Prometheus gauges of a run, read where Prometheus would read them: from the node's own page of metrics."""

from __future__ import annotations

import re
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import below, cluster, free_port, has_checkpoint, started, train_command, wait_for
from sockets import endpoints

from gnnmr_dist.gauges import PER_MODALITY, PER_RUN, PER_WORKER
from gnnmr_dist.status import read_status

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes and sockets through /proc"),
]
SAMPLE = re.compile(r"^ray_gnnmr_(\w+)\{(.*)\} (\S+)$")


def gauges(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, tags, value) of the gauges of ours on a page."""
    for line in page.splitlines():
        if (found := SAMPLE.match(line)) is not None:
            yield found[1], dict(re.findall(r'(\w+)="([^"]*)"', found[2])), float(found[3])


def page(port: int) -> str:
    """What a scrape of the node gets; nothing while its agent is not up yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_a_run_of_two_workers_is_seen_on_the_nodes_page(dataset: Path, tmp_path: Path) -> None:
    options = ["--num-workers", "2", "--epochs", "400", "--patience", "400", "--report-every-steps", "5"]
    options += ["--learning-rate", "1e-4"]
    port = free_port()
    system = [f"--metrics-export-port={port}", '--system-config={"metrics_report_interval_ms":1000}']
    with cluster(2, *system, "--include-dashboard=false") as head:
        output = tmp_path / "seen"
        with started(train_command(dataset, output, *options), head.address) as process:
            wait_for(has_checkpoint(output, "epoch-00002-step-0000000"), process)
            seen: dict[str, list[tuple[dict[str, str], float]]] = {}

            def complete() -> bool:
                seen.clear()
                for name, tags, value in gauges(page(port)):
                    assert tags["run"] == "seen"
                    seen.setdefault(name, []).append((tags, value))
                return (
                    set(seen) >= {*PER_RUN, *PER_MODALITY, *PER_WORKER} and len(seen["step_age_seconds"]) == 2
                )

            wait_for(complete, process)
            assert ("127.0.0.1", port) in endpoints(below(head.pid))
    assert set(seen) == {*PER_RUN, *PER_MODALITY, *PER_WORKER}
    assert sorted(tags["rank"] for tags, _ in seen["exchange_seconds"]) == ["0", "1"]
    assert sorted(tags["modality"] for tags, _ in seen["supervised_loss"]) == ["category", "text"]
    for name in ("samples_per_second", "exchange_seconds", "supervised_loss", "distillation_loss"):
        assert all(0 < value < 1e6 for _, value in seen[name]), (name, seen[name])
    for name in ("step_age_seconds", "checkpoint_age_seconds"):
        assert all(0 <= value < 60 for _, value in seen[name]), (name, seen[name])
    assert 1 <= seen["epoch"][0][1] <= 400
    assert read_status(str(output), now=0).samples_per_second is not None
