"""What travels: scores by their formula, and gradients that follow the batch, not the number of users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from processes import Case, run_alone, run_workers

from gnnmr_dist.data.batches import global_batch
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.writer import ModalityData, write_dataset

pytestmark = pytest.mark.multiprocess

BATCH, CANDIDATES, DIM = 128, 24, 16
ITEMS, ACTIVE = 80, 300  # users above the active ones have no interactions
SIZES = (10_000, 1_000_000)
REPLICAS = {"cluster": {"modality_groups": 1}}
TRAINING = {"training": {"global_batch_size": BATCH, "epochs": 1, "valid_every": 1}}
HALF = {"training": {**TRAINING["training"], "exchange": "bfloat16"}}


def with_users(output: Path, num_users: int) -> str:
    """The same interactions of the first 300 users, in a data set of ``num_users``."""
    keys = np.random.default_rng(0).permutation(ACTIVE * ITEMS)[:3000]
    users, items = (part.astype(np.int32) for part in np.divmod(np.sort(keys), ITEMS))
    parts = {"train": slice(0, None, 2), "valid": slice(1, None, 4), "test": slice(3, None, 4)}
    features = np.random.default_rng(1).standard_normal((2, ITEMS, 8), np.float32)
    present = np.ones(ITEMS, bool)
    write_dataset(
        output,
        name="users",
        users=pa.table({"id": np.arange(num_users)}),
        items=pa.table({"id": np.arange(ITEMS)}),
        splits={name: pa.table({"user": users[rows], "item": items[rows]}) for name, rows in parts.items()},
        modalities=[ModalityData(f"m{m}", "dense", 8, present, features[m]) for m in range(2)],
        provenance={},
    )
    return str(output)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    folder = tmp_path_factory.mktemp("traffic")
    return {size: with_users(folder / str(size), size) for size in SIZES}


def received(outcomes: list[dict[str, float]]) -> dict[str, float]:
    return next(record["received_bytes"] for record in outcomes if record["kind"] == "epoch")  # type: ignore[return-value]


def test_gradients_follow_the_batch_not_the_number_of_users(datasets: dict[int, str]) -> None:
    """10^4 and 10^6 users, one graph: the very same bytes, of which a table's would be 64 MB a step."""
    # all neighbours: which of them are drawn depends on the items' node numbers, which come after the users'
    whole = {"sampling": {"num_neighbors": [-1, -1]}}
    cases = [Case(datasets[size], TRAINING | REPLICAS | whole) for size in SIZES]
    few, many = (received(outcome[0].records) for outcome in run_workers(2, cases))
    steps = -(-1500 // BATCH)
    assert few == many
    assert few["row gradients"] / steps < 2 * 2 * (ACTIVE + ITEMS) * (8 + 4 * DIM) < SIZES[0] * DIM * 4
    assert few["dense gradients"] > 0
    assert "scores" not in few


def test_scores_travel_by_their_formula(datasets: dict[int, str]) -> None:
    """(G - 1) * modalities hosted * (b + n C) numbers a step, n the distinct users of the batch; half in bfloat16."""
    path = datasets[SIZES[0]]
    outcomes = run_workers(2, [Case(path, TRAINING), Case(path, HALF)])
    graph, numbers = open_dataset(path, verify="structure").graph, 0
    for step in range(-(-graph.num_edges // BATCH)):
        batch = global_batch(graph, 0, 0, step, batch_size=BATCH, num_candidates=CANDIDATES)
        numbers += batch.size + np.unique(batch.users).size * CANDIDATES
    for outcome, bytes_each in zip(outcomes, (4, 2), strict=True):
        assert received(outcome[0].records)["scores"] == numbers * bytes_each


def test_half_precision_rounds_what_peers_see_on_any_number_of_workers(datasets: dict[int, str]) -> None:
    path = datasets[SIZES[0]]
    alone, exact = run_alone(Case(path, HALF)), run_alone(Case(path, TRAINING))
    (together,) = run_workers(2, [Case(path, HALF)])
    assert np.array_equal(together[0].losses(), alone.losses())
    assert not np.array_equal(alone.losses(), exact.losses())
    np.testing.assert_allclose(alone.losses()[..., 0], exact.losses()[..., 0], rtol=2e-3)
