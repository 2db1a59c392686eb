"""Adam for tables of which a step touches few rows: the work follows the batch, the result is dense Adam's.

Under dense Adam (Kingma and Ba 2015) a row without a gradient still moves: its moments fade, and what is left of them
moves it. Here a row is left alone until it is needed and then caught up with all the steps it missed. After step s,
with moments m and v and x = sqrt(v), step s + j with a gradient of zero subtracts

    rate * m * a_j / (g_j x + eps),   a_j = beta1^j / (1 - beta1^(s+j)),   g_j = beta2^(j/2) / sqrt(1 - beta2^(s+j)).

Until step :data:`EXACT_BEFORE` these are added one by one. Later g_j varies so little (0.1 % a step) over the steps
that count that the sum is its Taylor series about the mean of g, weighted by a_j, up to the fourth central moment: what
is left out is below float32's rounding. The moments come from T_n(s), the sum over all j of a_j g_j^n, tabulated once:
the sum over a gap is T_n(s) less the faded T_n(s + gap).

Axes: U rows of a table, n rows of a step, d columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adam import adam

from gnnmr_dist.models.blocks import compiled
from gnnmr_dist.models.id_tables import Maker
from gnnmr_dist.row_adam_kernels import catch_up, move, tail_moments

BETAS = (0.9, 0.999)  # Adam's own
EPS = 1e-8
EXACT_BEFORE = 512
"""Rows last moved before this step are caught up step by step: g still changes fast (by 1 / 2s a step)."""
LONGEST = ceil(log(1e-8) / log(BETAS[0]))
"""Steps after which a row's remaining movement is 1e-8 of its first missed one (175)."""
_ROWS_AT_ONCE = 1 << 16
_CONSTANT_FROM = 40_000  # beta2^40000 < 1e-17: from here on g does not depend on s


@lru_cache(maxsize=1)
def _tails() -> Any:
    return tail_moments((_CONSTANT_FROM + 1, 5), *BETAS)


@dataclass(frozen=True)
class TableState:
    """A table [U, d], its two moments [U, d], and the last step of every row, int32 [U] (0 = never moved)."""

    table: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    last: Tensor

    def catch_up(self, rows: Tensor, now: int, rate: float) -> None:
        """Bring ``rows`` [n], all different, to step ``now``."""
        if compiled(self.table):
            arrays = self._arrays()
            catch_up(*arrays, rows.numpy(), now, rate, BETAS, EPS, _tails(), EXACT_BEFORE, LONGEST)
            return
        last = self.last[rows].long()
        behind = (last > 0) & (last < now)
        rows, s, gap = rows[behind], last[behind].unsqueeze(1), (now - last[behind]).unsqueeze(1)
        if rows.numel() == 0:
            return
        m, v = self.exp_avg[rows], self.exp_avg_sq[rows]
        moved = torch.where(s < EXACT_BEFORE, _one_by_one(m, v, s, gap), _by_moments(m, v, s, gap))
        self.table[rows] -= rate * moved
        self.exp_avg[rows] = m * _power(BETAS[0], gap).to(m.dtype)
        self.exp_avg_sq[rows] = v * _power(BETAS[1], gap).to(v.dtype)
        self.last[rows] = now

    def move(self, rows: Tensor, grad: Tensor, now: int, rate: float) -> None:
        """Step ``now`` of ``rows`` [n], all different, by ``grad`` [n, d]; rows behind are caught up first."""
        self.catch_up(rows, now - 1, rate)
        if compiled(self.table, grad):
            move(*self._arrays(), rows.numpy(), grad.contiguous().numpy(), now, rate, BETAS, EPS)
            return
        m = self.exp_avg[rows].lerp_(grad, 1 - BETAS[0])
        v = self.exp_avg_sq[rows].mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        denominator = v.sqrt().div_((1 - BETAS[1] ** now) ** 0.5).add_(EPS)
        self.table[rows] = self.table[rows].addcdiv_(m, denominator, value=-rate / (1 - BETAS[0] ** now))
        self.exp_avg[rows], self.exp_avg_sq[rows], self.last[rows] = m, v, now

    def _arrays(self) -> list[Any]:
        return [t.numpy() for t in (self.table, self.exp_avg, self.exp_avg_sq, self.last)]


def new_state(table: Tensor, make: Maker = torch.zeros) -> TableState:
    """The state of a table that has not moved; ``make`` makes its moments and steps."""
    first, second = (make(table.shape, dtype=table.dtype, device=table.device) for _ in range(2))
    last = make(table.shape[:1], dtype=torch.int32, device=table.device)
    return TableState(table.detach(), first, second, last)


def _dense_state(parameter: Parameter) -> dict[str, Tensor]:
    """What Adam keeps of a parameter that every step moves."""
    first, second = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": first, "exp_avg_sq": second}


def _slices(table: Tensor) -> Iterator[range]:
    for start in range(0, table.shape[0], _ROWS_AT_ONCE):
        yield range(start, min(start + _ROWS_AT_ONCE, table.shape[0]))


def _power(base: float, exponent: Tensor) -> Tensor:
    return torch.full((), base, dtype=torch.float64, device=exponent.device).pow(exponent)


def _one_by_one(m: Tensor, v: Tensor, s: Tensor, gap: Tensor) -> Tensor:
    """The sum over missed steps [n, d] of rows [n, 1] last moved at ``s`` < :data:`EXACT_BEFORE`; others: anything."""
    gap, moved, x = torch.where(s < EXACT_BEFORE, gap, 0), torch.zeros_like(m), v.sqrt()
    for j in range(1, min(int(gap.max()), LONGEST) + 1):
        a = BETAS[0] ** j / (1 - _power(BETAS[0], s + j)) * (j <= gap)
        g = BETAS[1] ** (0.5 * j) / (1 - _power(BETAS[1], s + j)).sqrt()
        moved += a.to(m.dtype) * m / (g.to(m.dtype) * x + EPS)
    return moved


def _by_moments(m: Tensor, v: Tensor, s: Tensor, gap: Tensor) -> Tensor:
    """The sum over missed steps [n, d] by its Taylor series."""
    tails = torch.from_numpy(_tails()).to(m.device)
    beta = torch.tensor(
        [BETAS[0] * BETAS[1] ** (0.5 * n) for n in range(5)], dtype=torch.float64, device=m.device
    )
    place, end = (t.clamp(max=_CONSTANT_FROM).squeeze(1) for t in (s, s + gap))
    raw = tails[place] - beta.pow(gap) * tails[end]
    total, (a, e2, e3, e4) = raw[:, :1], (raw[:, n : n + 1] / raw[:, :1] for n in range(1, 5))
    central = (e2 - a**2, e3 - 3 * a * e2 + 2 * a**3, e4 - 4 * a * e3 + 6 * a**2 * e2 - 3 * a**4)
    total, a, c2, c3, c4 = (t.to(m.dtype) for t in (total, a, *central))
    x = v.sqrt()
    inverse = 1 / (a * x + EPS)
    r = x * inverse
    return total * m * inverse * (1 + r * r * (c2 - r * (c3 - r * c4)))


class Adam:
    """Adam over one model: torch's for its dense parameters, rows of tables as this module has them.

    Before a forward pass :meth:`catch_up` the rows it reads; a table's gradient must be sparse, with every row once.
    With weight decay every row of a table has a gradient at every step, and the work follows the table.
    """

    def __init__(
        self,
        dense: Mapping[str, Parameter],
        tables: Mapping[str, Parameter],
        rate: float,
        weight_decay: float,
        make: Maker = torch.zeros,
    ) -> None:
        self.rate, self.weight_decay, self.steps = rate, weight_decay, 0
        self.dense_parameters, self.table_parameters = dict(dense), dict(tables)
        self.tables = {name: new_state(table, make) for name, table in tables.items()}
        self.dense = {name: _dense_state(parameter) for name, parameter in dense.items()}

    def catch_up(self, name: str, rows: Tensor) -> None:
        """Bring ``rows`` [n] of the table ``name`` up to the steps done so far."""
        self.tables[name].catch_up(rows, self.steps, self.rate)

    def settle(self) -> None:
        """Catch every row of every table up: the tables are then what dense Adam would have made of them."""
        for name, state in self.tables.items():
            for part in _slices(state.table):
                self.catch_up(name, torch.arange(part.start, part.stop, device=state.last.device))

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in (*self.dense_parameters.values(), *self.table_parameters.values()):
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter by its gradient."""
        self.steps += 1
        self._move_dense()
        for name, parameter in self.table_parameters.items():
            if parameter.grad is not None:
                rows, grad = parameter.grad._indices()[0], parameter.grad._values()
                every = (
                    self._decayed(self.tables[name].table, rows, grad)
                    if self.weight_decay
                    else [(rows, grad)]
                )
                for some, moving in every:
                    self.tables[name].move(some, moving, self.steps, self.rate)

    @torch.no_grad()
    def _move_dense(self) -> None:
        """Torch's fused Adam itself: its optimizer object spends several times as long on looking after hooks."""
        moving = {n: p.grad for n, p in self.dense_parameters.items() if p.grad is not None}
        states = [self.dense[name] for name in moving]
        adam(
            [self.dense_parameters[name] for name in moving],
            list(moving.values()),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=self.rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS,
            weight_decay=self.weight_decay,
        )

    def _decayed(self, table: Tensor, rows: Tensor, grad: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows of a table, in slices, and their gradients with weight decay."""
        rows, order = rows.sort()
        for part in _slices(table):
            first, last = torch.searchsorted(rows, torch.tensor([part.start, part.stop], device=rows.device))
            moving = self.weight_decay * table[part.start : part.stop]
            moving.index_add_(0, rows[first:last] - part.start, grad[order[first:last]])
            yield torch.arange(part.start, part.stop, device=table.device), moving

    def state_tensors(self) -> dict[str, Tensor]:
        """What must be kept to go on exactly, on the CPU: exp_avg.NAME, exp_avg_sq.NAME, step.NAME (of tables: [U])."""
        found: dict[str, Tensor] = {}
        if self.steps == 0:
            return found
        for name in self.dense_parameters:
            found |= {f"{key}.{name}": t.cpu() for key, t in self.dense[name].items()}
        for name, rows in self.tables.items():
            found |= {f"exp_avg.{name}": rows.exp_avg.cpu(), f"exp_avg_sq.{name}": rows.exp_avg_sq.cpu()}
            found[f"step.{name}"] = rows.last.cpu()
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state_tensors` gave.

        Raises:
            ValueError: a tensor is missing, left over or of another shape.
        """
        names = [*self.dense_parameters, *self.tables]
        expected = {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq", "step") for name in names}
        if tensors and set(tensors) != expected:
            differing = sorted(expected ^ set(tensors))
            raise ValueError(f"optimizer state missing or left over: {', '.join(differing[:3])}")
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            slot = self._slot(kind, name)
            if value.shape != slot.shape:
                raise ValueError(f"{key}: expected shape {tuple(slot.shape)}, got {tuple(value.shape)}")
            slot.copy_(value)
            if kind == "step":
                self.steps = max(self.steps, int(value.max()))  # every step moves some row

    def _slot(self, kind: str, name: str) -> Tensor:
        """Where the optimizer keeps one tensor of its state."""
        if name in self.tables:
            of_table: Tensor = getattr(self.tables[name], "last" if kind == "step" else kind)
            return of_table
        return self.dense[name][kind]
