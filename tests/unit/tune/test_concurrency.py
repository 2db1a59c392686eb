"""How many trials fit: hand-made clusters, and an exhaustive search for deadlocks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnmr_dist.errors import InputError
from gnnmr_dist.sections import ClusterSettings
from tune.concurrency import most_trials, require_room


def cluster(workers: int, cpus: float = 1.0, gpu: str = "auto") -> ClusterSettings:
    return ClusterSettings(num_workers=workers, cpus_per_worker=cpus, use_gpu=gpu)


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "expected"),
    [
        ([8], 0, 1.0, 8),
        ([8], 0, 3.0, 2),
        ([3], 2, 1.0, 1),  # a driver and two workers
        ([2], 2, 1.0, 0),  # never: the driver has a CPU its workers need
        ([8], 3, 1.0, 2),
        ([5], 2, 2.0, 1),  # 1 + 4
        ([4], 2, 2.0, 0),
        ([2, 2], 1, 2.0, 1),  # one node for the driver, one for the worker
        ([3, 1], 1, 3.0, 0),  # not sure: the driver may stand on the large node
        ([4, 4], 3, 1.0, 2),
    ],
)
def test_trials_by_hand(nodes: list[float], workers: int, cpus: float, expected: int) -> None:
    assert most_trials([{"CPU": float(c)} for c in nodes], cluster(workers, cpus), 100) == expected


def test_gpus_bound_it_too() -> None:
    node = {"CPU": 16.0, "GPU": 4.0}
    assert most_trials([node], cluster(2, gpu="always"), 100) == 2
    assert most_trials([node], cluster(0, gpu="always"), 100) == 4
    assert most_trials([node], cluster(2, gpu="never"), 100) == 5


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from([0.5, 1.0, 1.5, 2.0]),
)
def test_wherever_drivers_stand_all_workers_have_room(nodes: list[int], workers: int, cpus: float) -> None:
    """The definition, by trying every placement of drivers; and one trial more would not be sure."""

    def sure(trials: int) -> bool:
        ways = itertools.product(*(range(c + 1) for c in nodes))
        placed = [way for way in ways if sum(way) == trials]
        room = [sum(int((c - k) / cpus) for c, k in zip(nodes, way, strict=True)) for way in placed]
        return bool(placed) and min(room) >= trials * workers

    found = most_trials([{"CPU": float(c)} for c in nodes], cluster(workers, cpus), 20)
    assert found == max((n for n in range(1, sum(nodes) + 1) if sure(n)), default=0)


def test_refusals_say_what_is_missing() -> None:
    with pytest.raises(
        InputError, match=r"1 CPU beside its 4 workers of 1 CPU, on this cluster \(4 CPU and 0 GPU\)"
    ):
        require_room([{"CPU": 4.0}], cluster(4), None, 10)
    with pytest.raises(InputError, match=r"--concurrency: expected at most 2 trials .* got 3"):
        require_room([{"CPU": 2.0}], cluster(0), 3, 10)
    assert require_room([{"CPU": 2.0}], cluster(0), None, 10) == 2
    assert require_room([{"CPU": 20.0}], cluster(0), None, 3) == 3
