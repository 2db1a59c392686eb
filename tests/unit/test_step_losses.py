"""Losses of a step in the shared form: the compiled loops against the formulas on whole rows, and their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gnnmr_dist import step_losses
from gnnmr_dist.losses import Teacher
from gnnmr_dist.step_losses import Cells, Pair, add_kl_gradient, make_judges, truth_gradient

USERS, ROWS, CANDIDATES, MODALITIES = 5, 12, 37, 3


def problem(seed: int, width: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Cells, Pair]:
    """Flat scores [M, L], cells with known candidates (user 0 knows all), and who can judge what."""
    g = torch.Generator().manual_seed(seed)
    row_user = torch.cat([torch.arange(USERS), torch.randint(USERS, (ROWS - USERS,), generator=g)])
    known = torch.rand(USERS, CANDIDATES, generator=g) < 0.3
    known[0] = True
    own = torch.zeros(ROWS, width, dtype=torch.bool)
    own[:, 1:] = torch.rand(ROWS, width - 1, generator=g) < 0.3
    cells = Cells(row_user, (own, known))
    flat = 3 * torch.randn(MODALITIES, ROWS * width + USERS * CANDIDATES, generator=g, dtype=dtype)
    present = (
        torch.rand(MODALITIES, ROWS, width, generator=g) < 0.6,
        torch.rand(MODALITIES, CANDIDATES, generator=g) < 0.6,
    )
    return flat, cells, present


def both_ways(monkeypatch: pytest.MonkeyPatch, compute: object) -> list[tuple[float, list[Tensor]]]:
    """(loss, gradients) of the compiled loops, then of autograd on whole rows in float64."""
    found = [compute(torch.float32)]  # type: ignore[operator]
    with monkeypatch.context() as patch:
        patch.setattr(step_losses, "_compiled", lambda _: False)
        found.append(compute(torch.float64))  # type: ignore[operator]
    return found


def assert_alike(found: list[tuple[float, list[Tensor]]]) -> None:
    (loss, grads), (wanted, expected) = found
    assert float(loss) == pytest.approx(float(wanted), rel=2e-6)
    for got, want in zip(grads, expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("supervised", "width"), [("softmax", 1), ("softmax", 2), ("bpr", 2)])
def test_truth(
    seed: int, supervised: step_losses.Supervised, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(dtype: torch.dtype) -> tuple[float, list[Tensor]]:
        flat, cells, _ = problem(seed, width)
        loss, grads = truth_gradient(cells.parts(flat[0].to(dtype)), cells, supervised, 0.125)
        return float(loss), list(grads)

    assert_alike(both_ways(monkeypatch, compute))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("teacher", ["scores", "distributions", "bernoulli"])
def test_kl(seed: int, width: int, missing: bool, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(dtype: torch.dtype) -> tuple[float, list[Tensor]]:
        flat, cells, present = problem(seed, width)
        flat = flat.to(dtype)
        judges = make_judges(flat, present if missing else None, cells, teacher=teacher, temperature=1.7)
        loss, grads = 0.0, []
        for m in range(MODALITIES):
            grad = (torch.ones(ROWS, width, dtype=dtype), torch.ones(USERS, CANDIDATES, dtype=dtype))
            loss += float(add_kl_gradient(cells.parts(flat[m]), judges, m, 0.25, grad))
            grads += list(grad)
        return loss, grads

    assert_alike(both_ways(monkeypatch, compute))


@given(st.integers(0, 10_000), st.floats(-40, 40))
def test_a_constant_added_to_a_row_changes_nothing(seed: int, shift: float) -> None:
    flat, cells, _ = problem(seed)
    plain = truth_gradient(cells.parts(flat[0]), cells, "softmax", 1.0)
    moved = truth_gradient(cells.parts(flat[0] + shift), cells, "softmax", 1.0)
    assert float(moved[0]) == pytest.approx(float(plain[0]), rel=1e-4, abs=1e-3)
    torch.testing.assert_close(moved[1][1], plain[1][1], rtol=1e-3, atol=1e-4)


def test_masked_cells_have_no_gradient_at_all() -> None:
    """Not a tiny one either: numbers below the normal range slow every product they reach."""
    flat, cells, present = problem(1)
    _, grad = truth_gradient(cells.parts(flat[0]), cells, "softmax", 1.0)
    assert not grad[1][cells.masked[1]].any()
    judges = make_judges(flat, present, cells)
    grad = (torch.zeros(ROWS, 1), torch.zeros(USERS, CANDIDATES))
    add_kl_gradient(cells.parts(flat[0]), judges, 0, 1.0, grad)
    assert not grad[1][cells.masked[1]].any()


def test_rows_that_nobody_judges_cost_nothing() -> None:
    flat, cells, present = problem(2)
    nobody = tuple(torch.zeros_like(t) for t in present)
    judges = make_judges(flat, nobody, cells)
    grad = (torch.zeros(ROWS, 1), torch.zeros(USERS, CANDIDATES))
    assert add_kl_gradient(cells.parts(flat[1]), judges, 1, 1.0, grad) == 0
    assert not grad[0].any()
    assert not grad[1].any()


def test_one_modality_has_no_peers() -> None:
    flat, cells, _ = problem(3)
    judges = make_judges(flat[:1], None, cells)
    grad = (torch.ones(ROWS, 1), torch.ones(USERS, CANDIDATES))
    assert add_kl_gradient(cells.parts(flat[0]), judges, 0, 1.0, grad) == 0.0
    assert grad[1].eq(1).all()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_the_loss(number: float) -> None:
    flat, cells, _ = problem(4)
    spoilt = flat.clone()
    cells.parts(spoilt)[1][0, 3, ~cells.masked[1][3]] = number
    loss, _ = truth_gradient(cells.parts(spoilt[0]), cells, "softmax", 1.0)
    assert not torch.isfinite(torch.tensor(float(loss)))
    judges = make_judges(spoilt, None, cells)
    grad = (torch.zeros(ROWS, 1), torch.zeros(USERS, CANDIDATES))
    kl = add_kl_gradient(cells.parts(spoilt[1]), judges, 1, 1.0, grad)
    assert not torch.isfinite(torch.tensor(float(kl))), "the teacher's fault reaches its pupil"


def test_flat_scores_come_apart_as_they_were() -> None:
    flat, cells, _ = problem(5, width=2)
    own, shared = cells.parts(flat)
    assert (own.shape, shared.shape) == ((MODALITIES, ROWS, 2), (MODALITIES, USERS, CANDIDATES))
    assert torch.equal(cells.flat([(own[m], shared[m]) for m in range(MODALITIES)]), flat)
    rows = cells.rows(own, shared)
    assert torch.equal(rows[1, 7], torch.cat([own[1, 7], shared[1, cells.row_user[7]]]))
