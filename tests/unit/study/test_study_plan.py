"""The plan: the one in the repository is what the report needs, and a wrong one is refused in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from study.datasets import recipe_of
from study.plan import PARTS, SPLITS, Job, read_plan, share_missing

from gnnmr_dist.baselines import CLOSED_FORM
from gnnmr_dist.errors import InputError
from gnnmr_dist.presets import METHODS

REAL = Path(__file__).parents[3] / "benchmarks" / "study" / "plan.toml"
TINY = """
[defaults]
epochs = 3
[sets.planted]
synthetic = { num_users = 80 }
[[part]]
name = "tables"
priority = 1
sets = ["planted"]
methods = ["gnnmr", "bpr-mf"]
seeds = 2
[[part]]
name = "lambda"
priority = 1.5
sets = ["planted"]
methods = ["gnnmr"]
values.distill_weight = [0.0, 0.5, "default", 2.0]
"""


def tiny(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in TINY
    file = folder / "plan.toml"
    file.write_text(TINY.replace(old, new) if old else TINY)
    return file


def test_the_plan_of_the_repository_has_what_the_paper_shows() -> None:
    plan = read_plan(REAL)
    assert {part.name for part in plan.parts} == set(PARTS)
    assert all(part.jobs for part in plan.parts)
    for name in ("ml100k", "steam200k", "se_funds_2022q4"):
        jobs = [job for job in plan.part("tables").jobs if job.set == name]
        seeded = {(m, seed) for m in METHODS if m not in CLOSED_FORM for seed in range(5)}
        assert sorted((job.method, job.seed) for job in jobs) == sorted(
            seeded | {(m, 0) for m in CLOSED_FORM}
        )
    sizes = {plan.settings(job).model.embedding_dim for job in plan.part("dimension").jobs}
    assert sizes == {16, 32, 64, 128, 256, 512}
    weights = {plan.settings(job).loss.distill_weight for job in plan.part("lambda").jobs}
    assert weights >= {0.0, 0.1, 0.5, 1.0, 2.0}


def test_its_recipes_can_be_split_every_way_it_asks_for() -> None:
    plan = read_plan(REAL)
    for job in plan.ranked():
        recipe = plan.sets[job.set].recipe
        assert recipe is not None
        variant = "own" if share_missing(job.variant) else job.variant
        assert recipe_of(recipe, variant).split.method == ("column" if variant == "own" else variant)


def test_a_value_that_is_the_default_makes_no_other_job(tmp_path: Path) -> None:
    plan = read_plan(tiny(tmp_path))
    base = Job("planted", "own", "gnnmr", 0)
    off, double = (Job("planted", "own", "gnnmr", 0, (("distill_weight", w),)) for w in (0.0, 2.0))
    assert plan.part("lambda").jobs == (off, base, double)  # .5 is the default
    assert off.name == "planted/own/gnnmr/distill_weight-0/seed-0"
    assert plan.settings(double).loss.distill_weight == 2.0
    assert plan.settings(double).training.epochs == 3


def test_tables_of_one_name_are_one_part(tmp_path: Path) -> None:
    file = tiny(tmp_path)
    more = file.read_text().partition('[[part]]\nname = "lambda"')
    again = more[2].replace("1.5", "1.2").replace('[0.0, 0.5, "default", 2.0]', "[2.0, 4.0]")
    file.write_text("".join([*more, more[1], again]))
    part = read_plan(file).part("lambda")
    assert part.priority == 1.2
    assert [dict(job.values).get("distill_weight") for job in part.jobs] == [0.0, None, 2.0, 4.0]


def test_values_change_gnnmr_alone(tmp_path: Path) -> None:
    jobs = read_plan(tiny(tmp_path, 'methods = ["gnnmr"]', 'methods = ["all"]')).part("lambda").jobs
    assert {job.method for job in jobs} == set(METHODS)
    assert {job.method for job in jobs if not job.plain} == {"gnnmr"}


def test_the_most_valuable_come_first_and_each_once(tmp_path: Path) -> None:
    names = [job.name.removeprefix("planted/own/") for job in read_plan(tiny(tmp_path)).ranked()]
    assert names == [
        *("gnnmr/seed-0", "bpr-mf/seed-0"),
        *("gnnmr/distill_weight-0/seed-0", "gnnmr/distill_weight-2/seed-0"),
        *("gnnmr/seed-1", "bpr-mf/seed-1"),
    ]


def test_what_no_seed_and_no_feature_changes_is_fitted_once(tmp_path: Path) -> None:
    file = tiny(
        tmp_path, 'methods = ["gnnmr", "bpr-mf"]', 'methods = ["ease"]\nvariants = ["own", "missing-50"]'
    )
    assert [job.name for job in read_plan(file).part("tables").jobs] == ["planted/own/ease/seed-0"]


def test_a_smaller_plan_on_request(tmp_path: Path) -> None:
    plan = read_plan(tiny(tmp_path), only=["tables"], seeds=1)
    assert [job.name for job in plan.ranked()] == ["planted/own/gnnmr/seed-0", "planted/own/bpr-mf/seed-0"]
    assert plan.part("lambda").jobs == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bpr-mf"', '"bpr"', "methods: expected some of .*, got 'bpr'"),
        ("epochs = 3", "epoch = 3", "expected settings of train, got 'epoch'"),
        ("epochs = 3", "epochs = 0", "epochs"),
        ("distill_weight", "distil", "values: expected settings, got 'distil'"),
        ("2.0]", "-1.0]", "distill_weight"),
        ('sets = ["planted"]', 'sets = ["plant"]', "expected some of planted, got 'plant'"),
        ('name = "lambda"', 'name = "figures"', "expected some of tables, .*, got 'figures'"),
        ("seeds = 2", "seed = 2", "got 'seed'"),
        ("seeds = 2", 'variants = ["missing-0"]', "variants: expected own, .* got 'missing-0'"),
        ("synthetic =", 'recipe = "x.toml"\nsynthetic =', "expected either recipe or synthetic"),
    ],
)
def test_a_wrong_plan_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_plan(tiny(tmp_path, old, new))
    assert "\n" not in str(caught.value)


def test_unknown_parts_and_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--only: expected some of tables"):
        read_plan(tiny(tmp_path), only=["table"])
    with pytest.raises(InputError, match="--sets: expected some of planted"):
        read_plan(tiny(tmp_path), sets=["ml100k"])


def test_variants() -> None:
    assert share_missing("missing-30") == pytest.approx(0.3)
    assert [share_missing(name) for name in ("own", "missing-", "missing-100", *SPLITS)] == [None] * 7
