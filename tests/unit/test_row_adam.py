"""Rows left alone and caught up later against torch's dense Adam, on both paths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gnnmr_dist import row_adam
from gnnmr_dist.row_adam import Adam, new_state

ROWS, WIDTH = 40, 6


def touched(step: int, generator: torch.Generator) -> Tensor:
    """Which rows step ``step`` has: row 0 always, row 1 once in 700 steps, row 2 never, others now and then."""
    some = torch.randperm(ROWS - 3, generator=generator)[: 1 + step % 7] + 3
    often = [0, 1] if step % 700 == 1 else [0]
    return torch.cat([torch.tensor(often), some[torch.rand(some.numel(), generator=generator) < 0.2]])


def run(steps: int, dtype: torch.dtype, scale: float, weight_decay: float = 0.0) -> tuple[Adam, nn.Parameter]:
    """Both optimizers over the same gradients; ours, and the dense one's table."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype)
    ours, dense = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    bias = nn.Parameter(torch.zeros(1, dtype=dtype))
    adam = Adam({"bias": bias}, {"table": ours}, 1e-2, weight_decay)
    reference = torch.optim.Adam([dense], lr=1e-2, weight_decay=weight_decay)
    for step in range(steps):
        rows = touched(step, generator)
        grad = scale * torch.randn(rows.numel(), WIDTH, generator=generator, dtype=dtype)
        adam.catch_up("table", rows)
        torch.testing.assert_close(ours[rows], dense[rows], rtol=1e-5, atol=1e-5)
        bias.grad = torch.ones_like(bias)
        ours.grad = torch.sparse_coo_tensor(rows[None], grad, ours.shape, check_invariants=True)
        dense.grad = torch.zeros_like(dense).index_add_(0, rows, grad)
        adam.step()
        reference.step()
    return adam, dense


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 2e-7)])
@pytest.mark.parametrize(
    "scale", [1.0, 1e-7]
)  # the second: gradients that Adam's epsilon is not small beside
def test_it_is_dense_adam(
    compiled: bool, dtype: torch.dtype, tolerance: float, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(row_adam, "compiled", lambda *_: False)
    adam, dense = run(2200, dtype, scale)
    assert (adam.tables["table"].last < 2200).sum() > ROWS // 2, "most rows are behind"
    adam.settle()
    torch.testing.assert_close(adam.table_parameters["table"], dense, rtol=tolerance, atol=tolerance)
    assert adam.tables["table"].last.tolist() == [2200 if row != 2 else 0 for row in range(ROWS)]


@pytest.mark.parametrize("gap", [1, 2, 30, 200, 5000])
@pytest.mark.parametrize("step", [1, 100, 511, 512, 3000, 60_000])
@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0])
def test_every_gap_at_every_age(step: int, gap: int, size: float) -> None:
    """One row whose moments stand at ``step``, against the missed steps one by one in float64."""
    m, v, w = (torch.tensor([[x]], dtype=torch.float64) for x in (0.7 * size, size**2, 0.0))
    state = new_state(w.clone())
    state.exp_avg.copy_(m)
    state.exp_avg_sq.copy_(v)
    state.last.fill_(step)
    state.catch_up(torch.tensor([0]), step + gap, 1e-3)
    for t in range(step + 1, step + gap + 1):
        m, v = m * 0.9, v * 0.999
        w = w - 1e-3 / (1 - 0.9**t) * m / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    assert state.table.item() == pytest.approx(w.item(), rel=3e-7)
    assert state.exp_avg.item() == pytest.approx(m.item(), rel=1e-9, abs=1e-30 * size)
    assert state.exp_avg_sq.item() == pytest.approx(v.item(), rel=1e-9)


def test_weight_decay_reaches_every_row() -> None:
    adam, dense = run(60, torch.float64, 1.0, weight_decay=0.1)
    torch.testing.assert_close(adam.table_parameters["table"], dense)


def test_when_a_row_is_caught_up_does_not_matter_much() -> None:
    """Two stops on the way give what one gives, to rounding."""
    states = []
    for stops in ([900], [300, 640, 900]):
        state = new_state(torch.ones(1, 3))
        state.move(torch.tensor([0]), torch.tensor([[1.0, -2.0, 1e-5]]), 1, 1e-2)
        for stop in stops:
            state.catch_up(torch.tensor([0]), stop, 1e-2)
        states.append(state)
    torch.testing.assert_close(states[0].table, states[1].table, rtol=1e-6, atol=1e-7)
    assert states[0].last.tolist() == states[1].last.tolist() == [900]


def test_state_goes_on_bit_for_bit() -> None:
    adam, _ = run(30, torch.float32, 1.0)
    kept = {name: t.clone() for name, t in adam.state_tensors().items()}
    assert kept["step.table"].shape == (ROWS,)
    again = Adam(adam.dense_parameters, adam.table_parameters, 1e-2, 0.0)
    again.load_state(kept)
    assert again.steps == 30
    assert all(torch.equal(t, kept[name]) for name, t in again.state_tensors().items())
    with pytest.raises(ValueError, match="missing or left over"):
        again.load_state({name: t for name, t in kept.items() if name != "step.table"})
    with pytest.raises(ValueError, match=r"exp_avg.table: expected shape \(40, 6\)"):
        again.load_state(kept | {"exp_avg.table": torch.zeros(1)})


def test_a_model_of_tables_alone_goes_on_too() -> None:
    """Matrix factorisation has no dense parameter; its place in time is that of the newest row."""
    table = nn.Parameter(torch.ones(4, 2))
    adam = Adam({}, {"table": table}, 0.1, 0.0)
    for row in (0, 1, 0):
        grad = torch.ones(1, 2)
        table.grad = torch.sparse_coo_tensor(torch.tensor([[row]]), grad, table.shape, check_invariants=True)
        adam.step()
    again = Adam({}, {"table": nn.Parameter(table.detach().clone())}, 0.1, 0.0)
    again.load_state(adam.state_tensors())
    assert again.steps == adam.steps == 3
    again.settle()
    adam.settle()
    assert torch.equal(again.table_parameters["table"], table)
    assert table[0, 0] < table[1, 0] < table[2, 0] == 1
