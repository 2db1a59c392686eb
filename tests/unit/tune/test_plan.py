"""Which trials come, what the record keeps of them, what the search hears, and which point is best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gnnmr_dist.config import Settings, build
from gnnmr_dist.errors import InputError
from tune.choice import best, standings
from tune.plan import Listed, Plan, Suggested, seed_of
from tune.record import Ended, Record, Sweep, Trial, open_record
from tune.space import Point, parse_space

TABLES = {
    "training": {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}},
    "model": {"heads": [1, 2, 4]},
}
BASE = build(("test", {"model": {"embedding_dim": 8}}))


def record_in(folder: Path, seeds: int = 1) -> Record:
    sweep = Sweep(
        dataset="data",
        data_digest="d",
        space=TABLES,
        space_source="s.toml",
        space_digest="x",
        search="random",
        trials=None,
        seeds=seeds,
        stopper="asha",
        grace=1,
        reduction=3,
        settings=Settings().model_dump(mode="json"),
        versions={"torch": "0"},
        command=["sweep"],
    )
    record = Record(str(folder), sweep)
    record.begin()
    return record


class Heard:
    """A source of points that keeps what it is told."""

    def __init__(self, points: list[Point]) -> None:
        self.listed, self.told = Listed(points), []

    def ask(self) -> Point | None:
        return self.listed.ask()

    def recall(self, values: Point) -> None:
        self.listed.recall(values)

    def tell(self, point: int, result: float | None) -> None:
        self.told.append((point, result))


POINTS: list[Point] = [{"heads": 1}, {"heads": 2}, {"heads": 4}]


def test_every_point_has_every_seed_and_points_share_them(tmp_path: Path) -> None:
    plan = Plan(record_in(tmp_path, seeds=2), Heard(POINTS), BASE, 3)
    trials = [plan.next() for _ in range(6)]
    assert plan.next() is None
    assert [(t.number, t.point, t.repeat) for t in trials] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 1, 0),
        (3, 1, 1),
        (4, 2, 0),
        (5, 2, 1),
    ]
    assert [t.seed for t in trials] == [0, seed_of(0, 1)] * 3
    assert 0 < seed_of(0, 1) < 2**63


def test_the_search_hears_the_mean_once_all_seeds_have_ended(tmp_path: Path) -> None:
    source = Heard(POINTS)
    plan = Plan(record_in(tmp_path, seeds=2), source, BASE, 3)
    a, b, c, d = (plan.next() for _ in range(4))
    plan.end(b, Ended("finished", 0.4))
    assert source.told == []
    plan.end(a, Ended("stopped", 0.2))
    assert source.told == [(0, pytest.approx(0.3))]
    plan.end(c, Ended("finished", 0.4))
    plan.end(d, Ended("failed", reason="diverged"))
    assert source.told[1] == (1, None)


def test_a_resumed_plan_goes_on_where_it_was(tmp_path: Path) -> None:
    plan = Plan(record_in(tmp_path, seeds=2), Heard(POINTS), BASE, 3)
    first = [plan.next() for _ in range(3)]  # the second seed of the second point was never asked for
    for trial in first[:2]:
        plan.end(trial, Ended("finished", 0.5, 1, 2))
    source = Heard(POINTS)
    again = Plan(open_record(str(tmp_path)), source, BASE, 3)
    assert source.told == [(0, 0.5)]
    assert again.left == 4
    assert [(t.number, t.point, t.repeat) for t in iter(again.next, None)] == [
        (2, 1, 0),
        (3, 1, 1),
        (4, 2, 0),
        (5, 2, 1),
    ]
    assert again.record.trials[2] == first[2]


def test_suggested_values_that_do_not_go_together_fail_without_a_run(tmp_path: Path) -> None:
    source = Heard([{"heads": 3}, {"heads": 2}])
    plan = Plan(record_in(tmp_path), source, BASE, 2)
    trial = plan.next()
    assert trial is not None
    assert trial.number == 1
    ended = plan.record.trials[0].ended
    assert ended is not None
    assert "heads (3) must divide" in str(ended.reason)
    assert source.told == [(0, None)]


@pytest.mark.parametrize("search", ["optuna", "population"])
def test_optuna_learns_and_takes_over_what_an_earlier_session_saw(tmp_path: Path, search: str) -> None:
    pytest.importorskip("optuna")
    space = parse_space(TABLES, "s.toml")

    def value(point: Point) -> float:
        return 1 - abs(point["learning_rate"] - 0.01) - 0.1 * point["heads"]

    def session(record: Record, number: int) -> Plan:
        plan = Plan(record, Suggested(space, search, 0, len(record.trials)), BASE, 40)
        for _ in range(number):
            trial = plan.next()
            if trial is None:
                break
            plan.end(trial, Ended("finished", value(trial.values)))
        return plan

    session(record_in(tmp_path), 25)
    plan = session(open_record(str(tmp_path)), 15)
    assert isinstance(plan.source, Suggested)
    kept = [(t.value, t.state.name) for t in plan.source._study.trials]
    assert kept == [(t.ended.value, "COMPLETE") for t in plan.record.trials if t.ended]
    assert not {t.values["learning_rate"] for t in plan.record.trials[25:30]} & {
        t.values["learning_rate"] for t in plan.record.trials[:10]
    }  # the first draws do not come again
    values = [t.ended.value for t in plan.record.trials if t.ended and t.ended.value is not None]
    assert len(values) == 40
    assert max(values) > 0.89  # of 0.9


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the directory of a sweep \(sweep.json\), got none"):
        open_record(str(tmp_path))
    record_in(tmp_path)
    (tmp_path / "trials.jsonl").write_text('{"number": 0}\n')
    with pytest.raises(InputError, match=r"trials.jsonl: expected the record of a sweep, got"):
        open_record(str(tmp_path))
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 9}))
    with pytest.raises(InputError, match="expected sweep format 1"):
        open_record(str(tmp_path))


def trial(number: int, point: int, status: str | None, value: float | None = None, repeat: int = 0) -> Trial:
    ended = None if status is None else Ended(status, value)
    return Trial(number, point, repeat, repeat, {"heads": point}, ended)


def test_the_best_is_a_finished_point_and_the_earlier_of_equals() -> None:
    trials = [
        trial(0, 0, "finished", 0.3),
        trial(1, 1, "finished", 0.5),
        trial(2, 2, "finished", 0.5),
        trial(3, 3, "stopped", 0.9),
        trial(4, 4, None),
        trial(5, 5, "failed"),
    ]
    chosen = best(trials, 1)
    assert chosen is not None
    assert chosen.point == 1
    chosen = best(trials[3:], 1)
    assert chosen is not None
    assert chosen.point == 3
    assert best(trials[4:], 1) is None


def test_with_seeds_the_mean_decides_and_all_must_be_there() -> None:
    trials = [
        trial(0, 0, "finished", 0.5),
        trial(1, 0, "finished", 0.1, 1),
        trial(2, 1, "finished", 0.4),
        trial(3, 1, "finished", 0.4, 1),
        trial(4, 2, "finished", 0.9),
        trial(5, 2, None, repeat=1),
    ]
    chosen = best(trials, 2)
    assert chosen is not None
    assert (chosen.point, chosen.mean, chosen.deviation) == (1, 0.4, 0.0)
    assert standings(trials, 2)[0].deviation == pytest.approx(0.2828427)  # sqrt((.2^2 + .2^2) / 1)
