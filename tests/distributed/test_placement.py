"""What a cluster can hold, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from gnnmr_dist.distributed.placement import placement_problem, uses_gpus
from gnnmr_dist.sections import ClusterSettings

NODE = {"CPU": 4.0}
GPU_NODE = {"CPU": 2.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "told"),
    [
        ([NODE], {"num_workers": 4}, None),
        ([NODE], {"num_workers": 8, "cpus_per_worker": 0.5}, None),
        ([NODE, GPU_NODE], {"num_workers": 1, "use_gpu": "always"}, None),
        ([NODE], {"num_workers": 5}, "at most 4 workers of 1 CPU each on this cluster (1 nodes: 4 CPU), got 5"),
        ([NODE, NODE], {"num_workers": 1, "cpus_per_worker": 5}, "at most 0 workers of 5 CPU each"),
        ([NODE], {"num_workers": 1, "use_gpu": "always"}, "1 CPU and 1 GPU each on this cluster (1 nodes: 4 CPU and 0"),
        ([NODE, GPU_NODE], {"num_workers": 2, "use_gpu": "always"}, "at most 1 workers"),
        ([], {"num_workers": 1}, "(0 nodes: no node)"),
    ],
)  # fmt: skip
def test_placement(nodes: list[dict[str, float]], asked: dict[str, Any], told: str | None) -> None:
    problem = placement_problem(nodes, ClusterSettings(**asked))
    assert problem is None if told is None else problem is not None and told in problem


@pytest.mark.parametrize(("use_gpu", "expected"), [("auto", True), ("never", False), ("always", True)])
def test_gpus_are_used_where_every_worker_can_have_one(use_gpu: str, expected: bool) -> None:
    cluster = ClusterSettings.model_validate({"num_workers": 1, "use_gpu": use_gpu})
    assert uses_gpus([GPU_NODE], cluster) is expected
    two = ClusterSettings.model_validate({"num_workers": 2, "use_gpu": "auto"})
    assert not uses_gpus([NODE, GPU_NODE], two)  # one GPU for two workers: both on the CPU
