"""Space files: what is read, what is drawn, and every refusal in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from gnnmr_dist.config import Settings
from gnnmr_dist.errors import InputError
from tune.space import Range, draw, grid, nested, parse_space, read_space, settings_of, shuffled

SPACES = Path(__file__).parents[3] / "tune" / "spaces"


def test_the_papers_grid_is_the_papers() -> None:
    points = grid(read_space(SPACES / "paper.toml"))
    assert len(points) == 24
    assert points[:2] == [
        {"learning_rate": 1e-5, "distill_weight": 0.1},
        {"learning_rate": 1e-5, "distill_weight": 0.5},
    ]
    assert {p["learning_rate"] for p in points} == {1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3}
    assert {p["distill_weight"] for p in points} == {0.1, 0.5, 1.0, 2.0}
    sizes = [p["embedding_dim"] for p in grid(read_space(SPACES / "paper_d.toml"))]
    assert sizes == [16, 32, 64, 128, 256, 512]


def test_a_shuffled_grid_has_every_point_once_in_the_seeds_order() -> None:
    points = grid(read_space(SPACES / "paper.toml"))
    found = shuffled(points, 0)
    assert sorted(map(str, found)) == sorted(map(str, points))
    assert found != points
    assert found == shuffled(points, 0) != shuffled(points, 1)


def test_the_wide_space_can_be_drawn_from_and_every_draw_is_settings() -> None:
    space = read_space(SPACES / "wide.toml")
    points = [draw(space, 3, n) for n in range(200)]
    assert points == [draw(space, 3, n) for n in range(200)]
    assert points[0] != draw(space, 4, 0)
    for point in points:
        made = settings_of(Settings(), point, 7)
        assert made.training.seed == 7
        assert made.sampling.num_neighbors == point["num_neighbors"]
        assert 1e-4 <= point["learning_rate"] <= 1e-2
        assert point["num_candidates"] % 64 == 0
    assert {p["item_id"] for p in points} == {"none", "missing", "all"}
    below = sum(p["learning_rate"] < 1e-3 for p in points)  # the middle of the log range
    assert 70 < below < 130


def test_whole_numbers_on_a_log_range_reach_both_ends() -> None:
    space = parse_space({"model": {"embedding_dim": {"low": 1, "high": 3, "log": True}}}, "s")
    seen = Counter(draw(space, 0, n)["embedding_dim"] for n in range(300))
    assert set(seen) == {1, 2, 3}


def test_steps_start_at_low_and_include_high() -> None:
    space = parse_space({"loss": {"distill_weight": {"low": 0.1, "high": 0.5, "step": 0.2}}}, "s")
    assert space.domains["distill_weight"] == Range(0.1, 0.5, False, 0.2, False)
    assert {round(draw(space, 0, n)["distill_weight"], 6) for n in range(100)} == {0.1, 0.3, 0.5}


def test_a_digest_knows_content_only() -> None:
    one = parse_space({"loss": {"distill_weight": [1.0]}, "model": {"heads": [1, 2]}}, "a")
    same = parse_space({"model": {"heads": [1, 2]}, "loss": {"distill_weight": [1.0]}}, "b")
    other = parse_space({"model": {"heads": [1, 4]}, "loss": {"distill_weight": [1.0]}}, "a")
    assert one.digest == same.digest != other.digest


def test_points_are_nested_as_toml() -> None:
    assert nested({"learning_rate": 0.1, "num_neighbors": (5, 5), "heads": 2}) == {
        "training": {"learning_rate": 0.1},
        "sampling": {"num_neighbors": [5, 5]},
        "model": {"heads": 2},
    }


def test_values_that_do_not_go_together_name_the_point() -> None:
    with pytest.raises(InputError, match=r"point heads 3, embedding_dim 16: heads \(3\) must divide"):
        settings_of(Settings(), {"heads": 3, "embedding_dim": 16}, 0)


def test_a_grid_has_no_ranges() -> None:
    space = parse_space({"loss": {"distill_weight": {"low": 0.1, "high": 0.5}}}, "file.toml")
    with pytest.raises(
        InputError, match=r"file.toml, key loss.distill_weight: expected a list .* got a range"
    ):
        grid(space)
