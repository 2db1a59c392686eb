"""What travels: scores by their formula, and gradients that follow the batch, not the number of users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from processes import Case, Outcome, run_alone, run_workers

from gnnmr_dist.data.batches import global_batch
from gnnmr_dist.data.dataset import open_dataset
from gnnmr_dist.data.writer import ModalityData, write_dataset

pytestmark = pytest.mark.multiprocess

BATCH, CANDIDATES, DIM = 128, 24, 16
ITEMS, ACTIVE = 80, 300  # users above the active ones have no interactions
SIZES = (10_000, 100_000)
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


@dataclass(frozen=True)
class Traffic:
    """Cases by name, and what both of two workers saw of each."""

    cases: dict[str, Case]
    outcomes: dict[str, list[Outcome]]

    def received(self, name: str) -> dict[str, float]:
        """Bytes that worker 0 received, by kind."""
        records = self.outcomes[name][0].records
        return next(record["received_bytes"] for record in records if record["kind"] == "epoch")


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    folder = tmp_path_factory.mktemp("traffic")
    few, many = (with_users(folder / str(size), size) for size in SIZES)
    # all neighbours: which of them are drawn depends on the items' node numbers, which come after the users'
    whole = TRAINING | REPLICAS | {"sampling": {"num_neighbors": [-1, -1]}}
    cases = {"few users": Case(few, whole), "many users": Case(many, whole)}
    cases |= {"exact": Case(few, TRAINING), "half": Case(few, HALF)}
    return Traffic(cases, dict(zip(cases, run_workers(2, list(cases.values())), strict=True)))


def test_gradients_follow_the_batch_not_the_number_of_users(traffic: Traffic) -> None:
    """10^4 and 10^5 users, one graph: the very same bytes, of which a table's would be 6.4 MB a step."""
    few, many = traffic.received("few users"), traffic.received("many users")
    steps = -(-1500 // BATCH)
    assert few == many
    assert few["row gradients"] / steps < 2 * 2 * (ACTIVE + ITEMS) * (8 + 4 * DIM) < SIZES[0] * DIM * 4
    assert few["dense gradients"] > 0
    assert "scores" not in few


def test_scores_travel_by_their_formula(traffic: Traffic) -> None:
    """(G - 1) * modalities hosted * (b + n C) numbers a step, n the distinct users of the batch; half in bfloat16."""
    graph, numbers = open_dataset(traffic.cases["exact"].dataset, verify="structure").graph, 0
    for step in range(-(-graph.num_edges // BATCH)):
        batch = global_batch(graph, 0, 0, step, batch_size=BATCH, num_candidates=CANDIDATES)
        numbers += batch.size + np.unique(batch.users).size * CANDIDATES
    for name, bytes_each in (("exact", 4), ("half", 2)):
        assert traffic.received(name)["scores"] == numbers * bytes_each


def test_half_precision_rounds_what_peers_see_on_any_number_of_workers(traffic: Traffic) -> None:
    alone, exact = run_alone(traffic.cases["half"]), run_alone(traffic.cases["exact"])
    assert np.array_equal(traffic.outcomes["half"][0].losses(), alone.losses())
    assert not np.array_equal(alone.losses(), exact.losses())
    np.testing.assert_allclose(alone.losses()[..., 0], exact.losses()[..., 0], rtol=2e-3)
