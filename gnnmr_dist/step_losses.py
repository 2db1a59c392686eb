"""The losses of a step and their gradients, where the rows of a user share what they have in common.

A row's scores are those of its own columns (the positive, with BPR a negative) and those of the candidates, which are
the same for all rows of a user. So a step's scores are kept as (own [b, p], shared [n, C]): less to compute, to
exchange and to go through than [b, p + C], by b / n. The formulas are those of :mod:`gnnmr_dist.losses`, which take
whole rows; on the CPU in float32 compiled loops give the same losses and gradients from the shared form, elsewhere rows
are put together first.

Axes: M modalities, b rows, p own columns, n users, C candidates, S = p + C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gnnmr_dist import loss_kernels
from gnnmr_dist.losses import (
    Peers,
    Teacher,
    bpr_loss,
    make_peers,
    mutual_kl_loss,
    sampled_softmax_loss,
)

Supervised = Literal["softmax", "bpr"]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cells:
    """Which cells a step has: ``row_user`` int64 [b] in 0..n-1; masked ones, bool (own [b, p], shared [n, C])."""

    row_user: Tensor
    masked: Pair

    def to(self, device: torch.device) -> Cells:
        """The same cells on a device."""
        own, shared = self.masked
        return Cells(self.row_user.to(device), (own.to(device), shared.to(device)))

    def rows(self, own: Tensor, shared: Tensor) -> Tensor:
        """Whole rows [..., b, S] from own [..., b, p] and shared [..., n, C]."""
        return torch.cat([own, shared[..., self.row_user, :]], dim=-1)

    def flat(self, scores: Sequence[Pair]) -> Tensor:
        """Both parts of several modalities' scores in one tensor [M, b * p + n * C], to travel; without gradient."""
        with torch.no_grad():
            return torch.cat([part.reshape(-1) for pair in scores for part in pair]).view(len(scores), -1)

    def parts(self, flat: Tensor) -> Pair:
        """The parts (own [..., b, p], shared [..., n, C]) of what :meth:`flat` made [..., b * p + n * C], as views."""
        own, shared = self.masked
        cut = own.numel()
        return flat[..., :cut].unflatten(-1, own.shape), flat[..., cut:].unflatten(-1, shared.shape)


@dataclass(frozen=True)
class Judges:
    """Everyone's scores of a step, and their sums over modalities (in the order of modalities: the same for any host).

    ``scores``: (own [M, b, p], shared [M, n, C]). ``present``: which modalities can judge which items, bool (own
    [M, b, p], shared [M, C]), None = all. ``sums``: of what is present, (own [b, p], shared [n, C]); ``counts``: of how
    many, (own [b, p], shared [C]).
    """

    scores: Pair
    present: Pair | None
    sums: Pair
    counts: Pair
    cells: Cells
    teacher: Teacher
    temperature: float

    def peers(self) -> Peers:
        """The same as whole rows."""
        present = None
        if self.present is not None:
            own, shared = self.present
            users = self.cells.masked[1].shape[0]
            present = self.cells.rows(own, shared.unsqueeze(1).expand(-1, users, -1))
        masked, scores = self.cells.rows(*self.cells.masked), self.cells.rows(*self.scores)
        return make_peers(scores, present, masked, teacher=self.teacher, temperature=self.temperature)


def make_judges(
    flat: Tensor, present: Pair | None, cells: Cells, *, teacher: Teacher = "scores", temperature: float = 1.0
) -> Judges:
    """Judges from everyone's flat scores [M, b * p + n * C] (:meth:`Cells.flat`); no gradient flows to them."""
    own, shared = scores = cells.parts(flat.detach())
    if present is None:
        every = float(own.shape[0])
        sums, count = cells.parts(flat.detach().sum(dim=0)), own.new_full(own.shape[1:], every)
        return Judges(
            scores, None, sums, (count, own.new_full(shared.shape[2:], every)), cells, teacher, temperature
        )
    weights = (present[0].to(own.dtype), present[1].to(own.dtype))
    sums = (_weighted(own, weights[0]), _weighted(shared, weights[1].unsqueeze(1)))
    counts = (weights[0].sum(dim=0), weights[1].sum(dim=0))
    return Judges(scores, present, sums, counts, cells, teacher, temperature)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over the first axis of values times weights, in its order."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.addcmul_(value, weight)
    return total


def truth_gradient(
    scores: Pair, cells: Cells, supervised: Supervised, scale: float
) -> tuple[Tensor | float, Pair]:
    """The supervised loss, summed over rows, and ``scale`` times its gradient (own [b, p], shared [n, C]).

    Args:
        scores: (own, shared); no gradient flows through this call.
        cells: which cells count; for ``bpr`` own column 1 is masked where a row has no negative.
        supervised: ``softmax`` = :func:`~gnnmr_dist.losses.sampled_softmax_loss`, ``bpr`` =
            :func:`~gnnmr_dist.losses.bpr_loss` of own columns 0 and 1.
        scale: factor of the gradient, not of the loss.
    """
    own, shared = (t.detach() for t in scores)
    if supervised == "softmax" and own.shape[1] == 1 and _compiled(own):
        grad = (torch.empty_like(own), torch.empty_like(shared))
        arrays = _arrays(own, shared, cells.row_user, cells.masked[1])
        loss: float = loss_kernels.sampled_softmax(*arrays, np.float32(scale), *_arrays(*grad))
        return loss, grad

    if supervised == "softmax":
        return _by_autograd(sampled_softmax_loss, (own, shared), cells, scale)
    with torch.enable_grad():
        pairs = own.clone().requires_grad_()
        truth = bpr_loss(pairs[:, 0], pairs[:, 1], ~cells.masked[0][:, 1])
        (found,) = torch.autograd.grad(truth, pairs)
    return truth.detach(), (found * scale, torch.zeros_like(shared))


def add_kl_gradient(scores: Pair, judges: Judges, number: int, scale: float, grad: Pair) -> Tensor | float:
    """:func:`~gnnmr_dist.losses.mutual_kl_loss` of modality ``number``; adds ``scale`` x its gradient to ``grad``."""
    own, shared = (t.detach() for t in scores)
    if judges.scores[0].shape[0] == 1:
        return 0.0
    if judges.teacher == "scores" and _compiled(own):
        cells, soften = judges.cells, np.float32(1 / judges.temperature)
        values = _arrays(judges.scores[0][number], judges.scores[1][number])
        present = _present(judges, number)
        pairs = [tuple(_arrays(*pair)) for pair in (judges.sums, judges.counts, present, cells.masked)]
        student, target = tuple(_arrays(own, shared)), tuple(_arrays(*grad))
        rows = cells.row_user.numpy()
        loss: float = loss_kernels.mutual_kl(
            student, tuple(values), *pairs, rows, soften, np.float32(scale), target
        )
        return loss
    peers = judges.peers()
    value, more = _by_autograd(
        lambda rows, masked: mutual_kl_loss(rows, peers, masked, number), (own, shared), judges.cells, scale
    )
    grad[0].add_(more[0])
    grad[1].add_(more[1])
    return value


def _present(judges: Judges, number: int) -> Pair:
    if judges.present is not None:
        return judges.present[0][number], judges.present[1][number]
    own, shared = judges.counts
    return torch.ones_like(own, dtype=torch.bool), torch.ones_like(shared, dtype=torch.bool)


def _by_autograd(
    loss_of: Callable[[Tensor, Tensor], Tensor], scores: Pair, cells: Cells, scale: float
) -> tuple[Tensor, Pair]:
    with torch.enable_grad():
        own, shared = (t.clone().requires_grad_() for t in scores)
        loss = loss_of(cells.rows(own, shared), cells.rows(*cells.masked))
        grads = torch.autograd.grad(loss, (own, shared), allow_unused=True, materialize_grads=True)
    return loss.detach(), (grads[0] * scale, grads[1] * scale)


def _compiled(scores: Tensor) -> bool:
    return scores.device.type == "cpu" and scores.dtype == torch.float32


def _arrays(*tensors: Tensor) -> list[Any]:
    return [t.detach().contiguous().numpy() for t in tensors]
