"""Reading results: over seeds, by row, honest about what is not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from study import extras, worker
from study.archive import save, take_up
from study.page import Page
from study.plan import Job, read_plan
from study.results import Findings, headline, number_cell
from study.runner import Estimates, check_jobs, description, home_of
from study.tables import cells, comparisons, metric_rows, paired

from gnnmr_dist.errors import InputError

PLAN = """
[sets.toy]
synthetic = {}
[[part]]
name = "tables"
sets = ["toy"]
methods = ["gnnmr", "bpr-mf", "ease"]
seeds = 2
[[part]]
name = "mutual"
sets = ["toy"]
methods = ["gnnmr"]
seeds = 2
values.distill_weight = ["default", 0.0]
"""
KS = (10, 20)


def put(findings: Findings, job: Job, rows: dict[str, list[float]]) -> None:
    """A result whose users have these values of every metric."""
    home = home_of(findings.output, job)
    (home / "run").mkdir(parents=True)
    (home / "job.json").write_text(json.dumps(description(findings.plan, job)))
    names = [f"{metric}@{k}" for metric in ("Recall", "NDCG") for k in KS]
    means = {row: dict.fromkeys(names, float(np.mean(values))) for row, values in rows.items()}
    content = {"rows": means, "provenance": {"ks": KS, "users_evaluated": len(next(iter(rows.values())))}}
    (home / "run" / "evaluation-test.json").write_text(json.dumps(content))
    long = [(f"u{u}", row, value) for row, values in rows.items() for u, value in enumerate(values)]
    users, names_of_rows, values = zip(*long, strict=True)
    table = {
        "user": users,
        "row": pa.array(names_of_rows).dictionary_encode(),
        **dict.fromkeys(names, values),
    }
    pq.write_table(pa.table(table), home / "run" / "evaluation-test-users.parquet")


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    """gnnmr: both seeds, one without mutual learning; bpr-mf: seed 1 only."""
    (tmp_path / "plan.toml").write_text(PLAN)
    found = Findings(read_plan(tmp_path / "plan.toml"), tmp_path / "out")
    put(found, Job("toy", "own", "gnnmr", 0), {"text": [0.0, 0.2], "fused": [0.2, 0.4], "ease": [0.4, 0.5]})
    put(found, Job("toy", "own", "gnnmr", 1), {"text": [0.2, 0.2], "fused": [0.4, 0.6]})
    off = Job("toy", "own", "gnnmr", 1, (("distill_weight", 0.0),))
    put(found, off, {"text": [0.1, 0.1], "fused": [0.5, 0.6]})
    put(found, Job("toy", "own", "bpr-mf", 1), {"bpr-mf": [0.1, 0.1]})
    put(found, Job("toy", "own", "ease", 0), {"ease": [0.5, 0.5]})
    return found


def test_entries_are_rows_over_seeds(findings: Findings) -> None:
    entries = findings.entries(findings.plan.part("tables").jobs)
    assert [(e.label, e.seeds, e.headline) for e in entries] == [
        ("gnnmr, text", "2", False),
        ("gnnmr, fused", "2", True),
        ("bpr-mf", "1 of 2", True),
        ("ease", "1", True),
    ]
    assert entries[1].values("Recall@20") == pytest.approx([0.3, 0.5])
    assert entries[1].cell("Recall@20") == "0.4000 ± 0.1414"  # sqrt(2 x .1^2)
    ids, values = entries[1].users("NDCG@10")
    assert ids.tolist() == ["u0", "u1"]
    assert values == pytest.approx([0.3, 0.5])  # means over seeds


def test_the_best_of_a_column_is_bold_and_what_is_missing_says_so(findings: Findings) -> None:
    entries = findings.entries(findings.plan.part("tables").jobs)
    assert metric_rows("Recall", entries)[3] == ("ease", "**0.5000**", "**0.5000**", "1")
    missing = findings.entries([Job("toy", "own", "lightgcn", 0)])
    assert cells([*entries, *missing], ["Recall@20"])[-1] == ("lightgcn", "not run", "0 of 1")
    assert number_cell([]) == "not run"
    assert number_cell([0.25]) == "0.2500"


def test_comparisons_pair_users_over_all_seeds(findings: Findings) -> None:
    _, own, other, ease = findings.entries(findings.plan.part("tables").jobs)
    found = comparisons(own, [other, ease], "Recall@20")
    assert [difference for difference, _ in found] == pytest.approx([0.3, -0.1])
    assert all(0 <= p <= 1 for _, p in found)


def test_mutual_learning_is_paired_by_seed(findings: Findings) -> None:
    pairs = paired(findings, findings.plan.part("mutual").jobs)
    assert list(pairs) == ["text", "fused"]
    off, on = pairs["text"]
    assert (off.values("Recall@20"), on.values("Recall@20")) == (pytest.approx([0.1]), pytest.approx([0.2]))


def test_on_cold_items_mutual_learning_is_compared_and_what_is_tuned_stands_apart(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        """
[sets.toy]
synthetic = {}
[[part]]
name = "cold"
sets = ["toy"]
variants = ["cold-items"]
methods = ["gnnmr", "bpr-mf"]
values.distill_weight = ["default", 0.0]
[[part]]
name = "tuned"
sets = ["toy"]
methods = ["gnnmr"]
values.temperature = [0.25]
values.learning_rate = [0.001]
"""
    )
    found = Findings(read_plan(tmp_path / "plan.toml"), tmp_path / "out")
    values = (0.3, 0.1, 0.2, 0.4)  # with, without, bpr-mf, tuned
    for job, value in zip(found.plan.ranked(), values, strict=True):
        row = "bpr-mf" if job.method == "bpr-mf" else "fused"
        put(found, job, {row: [value, value]})
    page = Page()
    extras.cold(page, found)
    extras.tuned(page, found)
    text = page.markdown()
    assert "| gnnmr, fused | **0.3000** | **0.3000** | 1 |\n| bpr-mf | 0.2000 | 0.2000 | 1 |" in text
    assert "| fused | 0.1000 | 0.3000 | +0.2000 | - | +0.2000 to +0.2000 | 1 |" in text
    assert "### toy, temperature 0.25, learning_rate 0.001" in text
    assert "| gnnmr, fused | **0.4000** | **0.4000** | 1 |" in text


NEGATIVES = """
[sets.toy]
synthetic = {}
[[part]]
name = "negatives"
sets = ["toy"]
variants = ["cold-items"]
methods = ["gnnmr"]
values.negatives = ["default", "trained"]
[[part]]
name = "negatives"
sets = ["toy"]
variants = ["cold-items"]
methods = ["gnnmr"]
values.negatives = ["trained"]
values.distill_weight = [0.0]
"""


def test_negatives_are_compared_and_cold_items_also_among_themselves(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(NEGATIVES)
    found = Findings(read_plan(tmp_path / "plan.toml"), tmp_path / "out")
    plain, trained, alone = found.plan.ranked()
    for job, value in ((plain, 0.1), (trained, 0.4), (alone, 0.3)):
        put(found, job, {"text": [value, value]})
    home = home_of(found.output, trained) / "run"
    (home / worker.AMONG_COLD).write_text(
        json.dumps(
            {
                "rows": {"text": {"Recall@20": 0.6, "NDCG@20": 0.5}},
                "provenance": {"ks": [20], "items_ranked": 80},
            }
        )
    )
    page = Page()
    extras.negatives(page, found)
    extras.cold(page, found)
    text = page.markdown()
    assert "| text | 0.1000 | 0.4000 | +0.3000 | - | +0.3000 to +0.3000 | 1 |" in text
    assert "| text | 0.3000 | 0.4000 | +0.1000 | - | +0.1000 to +0.1000 | 1 |" in text
    assert "| toy, by chance 0.2500 | Recall@20 | NDCG@20 | seeds |" in text
    assert "| gnnmr, text, negatives trained | **0.6000** | **0.5000** | 1 |" in text
    assert "| gnnmr, text | not run | not run | 0 of 1 |" in text
    save(found, tmp_path / "kept")
    other = Findings(found.plan, tmp_path / "other")
    assert take_up(other.plan, tmp_path / "kept", other.output) == 3
    assert other.get(trained).rows == Findings(found.plan, found.output).get(trained).rows  # type: ignore[union-attr]


def test_held_out_items_are_evaluated_among_themselves_before_the_result_that_ends_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []

    def main(argv: list[str]) -> int:
        called.append(argv)
        return 2 if "--among" in argv and len(called) > 2 else 0

    monkeypatch.setattr(worker.evaluate, "main", main)
    assert worker._evaluate(tmp_path, {"cold": True}) == 0
    assert ["--among" in argv for argv in called] == [True, False]
    assert worker._evaluate(tmp_path, {"cold": True}) == 2
    assert len(called) == 3
    assert worker._evaluate(tmp_path, {"cold": False}) == 0
    assert "--among" not in called[-1]


def test_a_result_of_other_settings_does_not_count_and_stops_a_run(findings: Findings) -> None:
    job = Job("toy", "own", "bpr-mf", 1)
    file = home_of(findings.output, job) / "job.json"
    check_jobs(findings.plan, findings.output)
    file.write_text(file.read_text().replace("bpr-mf", "gat"))
    assert findings.get(job) is None
    with pytest.raises(InputError, match="got one with other settings"):
        check_jobs(findings.plan, findings.output)


def test_what_is_missing_is_known(findings: Findings) -> None:
    assert {job.name for job in findings.missing()} == {
        "toy/own/bpr-mf/seed-0",
        "toy/own/gnnmr/distill_weight-0/seed-0",
    }


def test_the_headline_of_a_method() -> None:
    assert headline("gnnmr", ["text", "concatenation", "fused"]) == "fused"
    assert headline("gnnmr", ["text", "concatenation"]) == "concatenation"
    assert headline("vbpr", ["concatenation", "vbpr"]) == "vbpr"
    assert headline("mmgcn", ["text"]) == "text"


def test_estimates_learn(findings: Findings) -> None:
    estimates = Estimates(findings.plan)
    zero, one = Job("toy", "own", "gnnmr", 0), Job("toy", "own", "gnnmr", 1)
    other = Job("toy", "own", "bpr-mf", 0)
    guess = estimates.seconds(other)
    estimates.add(zero, 2 * findings.plan.guess(zero))
    assert estimates.seconds(one) == 2 * findings.plan.guess(zero)
    assert estimates.seconds(other) == pytest.approx(2 * guess)  # its set takes twice as long as guessed
