"""Work ahead of its use: the same as map, and nothing left running."""

from __future__ import annotations

import threading

import pytest

from gnnmr_dist.data.ahead import Upcoming, ahead, read_ahead


@pytest.mark.parametrize("depth", [0, 1, 2, 7])
def test_it_is_map(depth: int) -> None:
    assert list(ahead(lambda x: x * x, range(5), depth)) == [0, 1, 4, 9, 16]
    assert list(ahead(lambda x: x, [], depth)) == []


def test_results_are_computed_before_they_are_asked_for() -> None:
    third = threading.Event()
    made = ahead(lambda x: third.set() if x == 2 else None, range(10), 2)
    next(made)  # 0 is used; 1 and 2 are under way
    assert third.wait(10)
    made.close()


def test_no_more_than_the_depth_is_computed() -> None:
    started: list[int] = []
    made = ahead(started.append, range(100), 3)
    next(made)
    made.close()
    assert started == list(range(len(started)))
    assert len(started) <= 4


@pytest.mark.parametrize("depth", [0, 2])
def test_an_exception_comes_where_its_result_would(depth: int) -> None:
    made = ahead(lambda x: 1 // (2 - x), range(5), depth)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)
    with pytest.raises(StopIteration):
        next(made)
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_reading_ahead_gives_the_same_values() -> None:
    assert list(read_ahead(iter([3, None, 5]))) == [3, None, 5]
    assert list(read_ahead(iter([]))) == []


@pytest.mark.parametrize("threaded", [False, True])
def test_what_is_upcoming_may_be_made_meanwhile(threaded: bool) -> None:
    made: list[int] = []

    def make(x: int) -> int:
        made.append(x)
        return x + 10

    upcoming, got = Upcoming(make, range(4), threaded=threaded), []
    for value in upcoming:
        before = len(made)
        upcoming.meanwhile()
        upcoming.meanwhile()  # nothing more: one ahead is enough
        assert threaded or len(made) == min(before + 1, 4)
        got.append(value)
    assert got == [10, 11, 12, 13]
    assert made == [0, 1, 2, 3]


def test_an_exception_made_meanwhile_comes_at_once() -> None:
    upcoming = Upcoming(lambda x: 1 // (1 - x), range(3), threaded=False)
    values = iter(upcoming)
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        upcoming.meanwhile()
