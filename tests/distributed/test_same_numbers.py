"""One number, any mesh: every number of workers gives the losses and the metrics of one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Case, Outcome, run_alone, run_workers

from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.synthetic import synthetic_dataset

pytestmark = pytest.mark.multiprocess

MODALITIES = (2, 3)
BPR = {"loss": {"supervised": "bpr"}, "training": {"grad_clip": 0.5, "weight_decay": 1e-4}}
DOUBLE = {"training": {"precision": "float64"}}
SOCKETS = {"cluster": {"share_memory": False}}
REPLICAS_ONLY = {"cluster": {"modality_groups": 1}}
A2CMHNE = {"model": {"method": "a2cmhne"}, **DOUBLE}
PMGT = {
    "model": {"method": "pmgt"},
    "sampling": {"num_neighbors": ()},
    "pretraining": {"pretrain_epochs": 2},
    **DOUBLE,
}
EXPLODING = {"training": {"learning_rate": 1e30, "epochs": 2}, "model": {"score": "dot"}}


def _leaves_one_row(path: str) -> dict[str, Any]:
    """A batch size whose last batch has one row: fewer than there are replicas."""
    edges = open_dataset(path, verify="structure").graph.num_edges
    size = next(size for size in range(200, edges) if edges % size == 1)
    return {"training": {"global_batch_size": size, "epochs": 2}}


class Runs:
    """Every case once in one process and on each number of workers that a test wants, made when first asked for."""

    def __init__(self, root: Path) -> None:
        paths = {m: str(root / f"m{m}") for m in MODALITIES}
        for m, path in paths.items():
            synthetic_dataset(path, num_users=200, num_items=120, num_modalities=m, interactions_per_user=10)
        self.cases = {
            "m3": Case(paths[3]),
            "m2": Case(paths[2]),
            "m3-bpr": Case(paths[3], BPR),
            "m2-sockets-double": Case(paths[2], SOCKETS | DOUBLE),
            "m2-double": Case(paths[2], DOUBLE),
            "m3-double": Case(paths[3], DOUBLE),
            "m2-one-row": Case(paths[2], _leaves_one_row(paths[2])),
            "m3-replicas-only": Case(paths[3], REPLICAS_ONLY),
            "m3-a2cmhne-double": Case(paths[3], A2CMHNE),
            "m3-pmgt-double": Case(paths[3], PMGT),
            "m2-exploding": Case(paths[2], EXPLODING),
        }
        self._alone: dict[str, Outcome] = {}
        self._many: dict[int, dict[str, list[Outcome]]] = {}

    def alone(self, name: str) -> Outcome:
        if name not in self._alone:
            self._alone[name] = run_alone(self.cases[name])
        return self._alone[name]

    def workers(self, world: int, name: str) -> list[Outcome]:
        if world not in self._many:
            wanted = [name for name in self.cases if (name, world) in WANTED]
            outcomes = run_workers(world, [self.cases[name] for name in wanted])
            self._many[world] = dict(zip(wanted, outcomes, strict=True))
        return self._many[world][name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("same-numbers"))


# Without replicas every bit is the same. Replicas add up the rows' gradients in another order (weights differ by some
# 1e-7), so that two items of almost the same score may change places: for one user of about 140 here. In float64 the
# weights differ by 1e-15 or so and every metric is equal.
FEW = 1 / 100

# The KL, some .01, is a difference of logarithms of some 5, to which weights that differ by 1e-7 give an error of that
# size: over eight seeds 2 to 12 millionths of the KL after all steps, 7e-8 of the supervised loss (measured).
ROUNDING = 1e-7

# name, W, R x G as the mesh makes it
MESHES = [
    ("m3", 1, (1, 1)),
    ("m3", 2, (1, 2)),  # uneven: 2 modalities and 1
    ("m3", 3, (1, 3)),
    ("m3", 4, (2, 2)),
    ("m2", 2, (1, 2)),
    ("m2", 3, (3, 1)),
    ("m2", 4, (2, 2)),
    ("m3-bpr", 3, (1, 3)),
    ("m3-bpr", 4, (2, 2)),
    ("m3-replicas-only", 2, (2, 1)),
    ("m3-replicas-only", 4, (4, 1)),
    ("m2-double", 3, (3, 1)),
    ("m2-double", 4, (2, 2)),
    ("m2-sockets-double", 4, (2, 2)),
    ("m3-double", 4, (2, 2)),
    ("m3-a2cmhne-double", 2, (2, 1)),
    ("m3-pmgt-double", 2, (2, 1)),
    ("m2-one-row", 3, (3, 1)),
    ("m2-one-row", 4, (2, 2)),
]
REPLICATED = [("m3", 4), ("m2", 3), ("m3-bpr", 4), ("m3-pmgt-double", 2)]
EXPLODED = (2, 3, 4)
WANTED = (
    {(name, world) for name, world, _ in MESHES} | set(REPLICATED) | {("m2-exploding", w) for w in EXPLODED}
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "world", "shape"), MESHES, ids=lambda v: str(v).replace(" ", ""))
def test_losses_and_metrics_are_those_of_one_process(
    runs: Runs, name: str, world: int, shape: tuple[int, int]
) -> None:
    alone, everyone = runs.alone(name), runs.workers(world, name)
    expected, got = alone.losses(), everyone[0].losses()
    assert expected.shape[0] > 10
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=ROUNDING * expected[..., 0].max())
    for outcome in everyone:
        assert outcome.finished == alone.finished == "epochs"
        if shape[0] == 1:
            assert outcome.test == alone.test
            assert outcome.weights == {name: alone.weights[name] for name in outcome.weights}
        elif name.endswith("-double"):
            assert outcome.test == alone.test
        else:
            assert _differences(alone, outcome) <= FEW
    assert [tuple(outcome.place[:2]) for outcome in everyone] == [shape] * world


@pytest.mark.parametrize(("name", "world"), REPLICATED)
def test_replicas_hold_the_same_bits_and_groups_all_modalities(runs: Runs, name: str, world: int) -> None:
    everyone = runs.workers(world, name)
    _, groups, _, _ = everyone[0].place
    first = everyone[:groups]
    hosted = [modality for outcome in first for modality in outcome.weights]
    assert hosted == list(runs.alone(name).weights)
    for outcome in everyone:
        assert outcome.weights == first[outcome.place[3]].weights


def test_pre_training_gives_the_bits_of_one_process(runs: Runs) -> None:
    alone = runs.alone("m3-pmgt-double").weights["pmgt"]
    for outcome in runs.workers(2, "m3-pmgt-double"):
        got = outcome.weights["pmgt"]
        frozen = [name for name in got if name.startswith("transformer.")]
        assert len(frozen) > 20
        assert all(got[name] == alone[name] for name in frozen)


@pytest.mark.parametrize("world", EXPLODED)
def test_a_loss_that_is_not_finite_stops_all_workers_at_the_same_step(runs: Runs, world: int) -> None:
    alone, everyone = runs.alone("m2-exploding"), runs.workers(world, "m2-exploding")
    assert re.fullmatch(
        r"diverged: loss of (text|category) is not finite at epoch 0, step \d+", alone.finished
    )
    assert [outcome.finished for outcome in everyone] == [alone.finished] * world


def _differences(one: Outcome, other: Outcome) -> float:
    """The largest difference of any metric in [0, 1] of any row of the test split."""
    assert one.test.keys() == other.test.keys()
    return max(
        abs(value - other.test[row][metric])
        for row, metrics in one.test.items()
        for metric, value in metrics.items()
        if not metric.startswith("AveragePopularity")
    )
