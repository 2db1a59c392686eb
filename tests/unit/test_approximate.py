"""The approximate index: exact when it reads everything, masked and full lists when it does not, a measured recall."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gnnmr_dist.approximate import ApproximateIndex, list_recall
from gnnmr_dist.errors import InputError
from gnnmr_dist.ranking import EmbeddingScorer, ItemLists, item_lists, rank_top_k
from gnnmr_dist.recommend import main

NUM_USERS, NUM_ITEMS = 300, 4000
USERS = np.arange(NUM_USERS)


@pytest.fixture(scope="module")
def problem() -> tuple[EmbeddingScorer, ItemLists]:
    """Clustered items with an offset that matters; some users have seen much, the last one all but three items."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 16, generator=generator)
    items = centres[torch.arange(NUM_ITEMS) % 40] + 0.5 * torch.randn(NUM_ITEMS, 16, generator=generator)
    users = centres[torch.arange(NUM_USERS) % 40] + torch.randn(NUM_USERS, 16, generator=generator)
    rng = np.random.default_rng(0)
    rows = [rng.choice(NUM_ITEMS, u % 50, replace=False) for u in USERS[:-1]]
    rows.append(np.arange(3, NUM_ITEMS))
    pairs = np.repeat(USERS, [row.size for row in rows]), np.concatenate(rows)
    offset = torch.rand(NUM_ITEMS, generator=generator) * 5
    return EmbeddingScorer(users, items, offset), item_lists(*pairs, NUM_USERS)


def test_reading_every_list_is_exact(problem: tuple[EmbeddingScorer, ItemLists]) -> None:
    index = ApproximateIndex(problem[0], USERS, problem[1], 20, 1.0)
    items, scores = index.rank(USERS)
    exact, expected = rank_top_k(problem[0], USERS, problem[1], 20)
    assert index.recall == 1.0
    assert list_recall(items, exact) > 0.999  # beyond the sample, and where scores are equal up to rounding
    np.testing.assert_allclose(np.sort(scores), np.sort(expected), rtol=1e-4)


@pytest.mark.parametrize("target", [0.3, 0.9])
def test_what_it_promises_holds_on_the_sample_and_lists_are_full_unseen_and_sorted(
    problem: tuple[EmbeddingScorer, ItemLists], target: float
) -> None:
    scorer, seen = problem
    index = ApproximateIndex(scorer, USERS, seen, 20, target)
    items, scores = index.rank(USERS)
    exact, _ = rank_top_k(scorer, USERS, seen, 20)
    assert index.probes < index.num_lists
    assert index.recall >= target
    assert list_recall(items, exact) == pytest.approx(index.recall, abs=0.05)
    assert ((items >= 0).sum(axis=1) == (exact >= 0).sum(axis=1)).all()
    assert items[-1].tolist() == exact[-1].tolist()  # three items are left: ranked exactly
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    whole = scorer.scores(USERS).numpy()
    for user in USERS:
        real = items[user] >= 0
        own = items[user][real]
        assert np.unique(own).size == own.size
        assert not set(own) & set(seen.items[seen.indptr[user] : seen.indptr[user + 1]])
        np.testing.assert_allclose(scores[user][real], whole[user, own], rtol=1e-4, atol=1e-4)


def test_recall_by_hand() -> None:
    exact = np.array([[1, 2, 3, 4], [5, -1, -1, -1], [-1, -1, -1, -1]])
    found = np.array([[2, 1, 9, 8], [5, -1, -1, -1], [-1, -1, -1, -1]])
    assert list_recall(found, exact) == (0.5 + 1) / 2


def test_the_command_notes_and_records_the_recall(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lists.parquet"
    options = ["--run", str(planted), "--all", "--k", "5", "--output", str(output)]
    assert main([*options, "--approximate", "1"]) == 0
    note = "approximate: 1.0000 of the exact lists of 60 sampled users found, reading 1 of 1 lists of items"
    assert f"note: {note}\n" in capsys.readouterr().err
    assert pq.read_schema(output).metadata[b"ranking"].decode() == note
    approximate = pq.read_table(output).drop_columns("score")
    assert main([*options, "--row", "concatenation"]) == 0
    assert b"ranking" not in (pq.read_schema(output).metadata or {})
    assert approximate.to_pylist() == pq.read_table(output).drop_columns("score").to_pylist()


@pytest.mark.parametrize("recall", ["0", "1.5", "nan"])
def test_a_recall_out_of_range(planted: Path, recall: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(planted), "--users", "u9", "--approximate", recall]) == 2
    assert "approximate: expected a recall above 0 and up to 1, got" in capsys.readouterr().err


def test_without_faiss_one_line_says_what_to_install(
    problem: tuple[EmbeddingScorer, ItemLists], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        InputError, match=r"expected faiss-cpu to be installed \(pip install 'gnnmr-dist\[approx"
    ):
        ApproximateIndex(problem[0], USERS, problem[1], 5, 0.9)
