"""The truth (Eq. 7) and the peers (Eq. 8): pure functions of score tensors.

Axes: M modalities, b rows (user, positive item), S columns of a row. Column 0 is the positive item; with BPR column 1
is the row's own negative; the rest are the step's shared candidates. Sums over rows are returned, never means: the
caller divides once by the size of the global batch, so any split of the rows gives the same loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gnnmr_dist import loss_kernels

Supervised = Literal["softmax", "bpr"]
Teacher = Literal["scores", "distributions", "bernoulli"]

_LOWEST = -1e30  # stands for -inf where a whole row may be masked: its softmax stays finite


def bpr_loss(positive: Tensor, negative: Tensor, valid: Tensor | None = None) -> Tensor:
    """Sum over rows of -ln sigmoid(positive - negative) (Eq. 7; Rendle et al. 2009).

    Args:
        positive: scores of interacted items [b].
        negative: scores of items not interacted with [b].
        valid: bool [b], False for rows without a negative (a user who knows every item); None = all.

    Raises:
        ValueError: shapes differ (broadcasting here would silently train something else).
    """
    if positive.shape != negative.shape or positive.dim() != 1:
        raise ValueError(
            f"positive and negative must be [b] alike, got {positive.shape} and {negative.shape}"
        )
    loss = functional.softplus(negative - positive)
    return (loss if valid is None else torch.where(valid, loss, torch.zeros_like(loss))).sum()


def sampled_softmax_loss(scores: Tensor, masked: Tensor) -> Tensor:
    """Sum over rows of -ln softmax(scores)[0] over the unmasked columns.

    Args:
        scores: [b, S], column 0 the positive.
        masked: bool [b, S], True where the column must not count (an item the user knows: a false negative).

    Raises:
        ValueError: shapes differ, or a positive is masked.
    """
    _same_shape(scores, masked)
    if bool(masked[:, 0].any()):
        raise ValueError("column 0 is the positive and cannot be masked")
    logits = scores.masked_fill(masked, float("-inf"))
    return (torch.logsumexp(logits, dim=1) - logits[:, 0]).sum()


@dataclass(frozen=True)
class Peers:
    """All modalities' judgements of a step's cells, ready for each modality to be taught by the others.

    ``values`` [M, b, S] are scores, or probabilities for the teacher ``distributions``; ``present`` bool likewise (None
    = everywhere); ``total`` and ``count`` [b, S] are sums over all M of what is present.
    """

    values: Tensor
    present: Tensor | None
    total: Tensor
    count: Tensor
    teacher: Teacher
    temperature: float

    def mean_without(self, own: int) -> tuple[Tensor, Tensor]:
        """The s^oth of Eq. 8 [b, S] for modality ``own``, and where no peer judges (bool [b, S])."""
        weight = 1.0 if self.present is None else self.present[own].to(self.values.dtype)
        count = self.count - weight
        mean = (self.total - self.values[own] * weight) / count.clamp(min=1)
        return mean, count == 0


def make_peers(
    scores: Tensor,
    present: Tensor | None,
    masked: Tensor,
    *,
    teacher: Teacher = "scores",
    temperature: float = 1.0,
) -> Peers:
    """Sums over modalities, made once per step in the order of modalities (so they do not depend on who hosts whom).

    Args:
        scores: all modalities' scores [M, b, S]; detached here.
        present: bool [M, b, S], False where the item of the cell has no row in that modality; None = all present.
        masked: bool [b, S], cells that count nowhere.
        teacher: see :func:`mutual_kl_loss`.
        temperature: divides the scores.

    Raises:
        ValueError: shapes do not fit.
    """
    if (
        scores.dim() != 3
        or scores.shape[1:] != masked.shape
        or (present is not None and present.shape != scores.shape)
    ):
        raise ValueError(f"expected [M, {tuple(masked.shape)}], got {tuple(scores.shape)}")
    values = scores.detach()
    if teacher == "distributions":
        out = masked if present is None else masked | ~present
        values = torch.softmax((values / temperature).masked_fill(out, _LOWEST), dim=2)
    total, count = _sums(values, present)
    return Peers(values, present, total, count, teacher, temperature)


def _sums(values: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    if present is None:
        return values.sum(dim=0), values.new_full((), values.shape[0]).expand(values.shape[1:])
    if _compiled(values):
        total, count = torch.empty_like(values[0]), torch.empty_like(values[0])
        loss_kernels.peer_sums(*_arrays(values, present), total.numpy(), count.numpy())
        return total, count
    weight = present.to(values.dtype)
    return (values * weight).sum(dim=0), weight.sum(dim=0)


def mutual_kl_loss(student: Tensor, peers: Peers, masked: Tensor, own: int) -> Tensor:
    """Sum over rows of KL(teacher || student) (Eq. 8), the teacher being the other modalities.

    Scores are not distributions (docs/decisions.md), so a row's scores become one by a softmax over its columns:
    ``scores`` takes the softmax of the peers' mean score, ``distributions`` the mean of the peers' softmaxes;
    ``bernoulli`` reads every score as a probability of its own through a sigmoid and averages over columns.
    No gradient flows into a peer. Cells that are masked, or that no peer can judge, count on neither side.

    Args:
        student: this modality's scores [b, S], with gradient.
        peers: everyone's, this modality included (:func:`make_peers`).
        masked: bool [b, S].
        own: this modality's number.

    Returns:
        a scalar; 0 with a single modality.

    Raises:
        ValueError: shapes do not fit.
    """
    _same_shape(student, masked)
    if peers.total.shape != student.shape:
        raise ValueError(f"expected peers of shape {tuple(student.shape)}, got {tuple(peers.total.shape)}")
    if peers.values.shape[0] == 1:
        return student.sum() * 0.0
    mean, unjudged = peers.mean_without(own)
    out = masked | unjudged
    logits = student / peers.temperature
    if peers.teacher == "bernoulli":
        return _bernoulli_kl(mean / peers.temperature, logits, out)
    if peers.teacher == "distributions":
        target = mean.masked_fill(out, 0.0)
        target = target / target.sum(dim=1, keepdim=True).clamp(min=1e-30)
    else:
        target = _softmax(mean / peers.temperature, out)
    log_student = functional.log_softmax(logits.masked_fill(out, _LOWEST), dim=1)
    return functional.kl_div(log_student, target, reduction="none").masked_fill(out, 0.0).sum()


def _softmax(scores: Tensor, out: Tensor) -> Tensor:
    return torch.softmax(scores.masked_fill(out, _LOWEST), dim=1).masked_fill(out, 0.0)


def _bernoulli_kl(mean: Tensor, logits: Tensor, out: Tensor) -> Tensor:
    p = torch.sigmoid(mean)
    kl = p * (functional.logsigmoid(mean) - functional.logsigmoid(logits)) + (1 - p) * (
        functional.logsigmoid(-mean) - functional.logsigmoid(-logits)
    )
    kept = (~out).to(logits.dtype)
    return ((kl * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)).sum()


def _same_shape(scores: Tensor, masked: Tensor) -> None:
    if scores.dim() != 2 or scores.shape != masked.shape:
        raise ValueError(f"scores and mask must be [b, S] alike, got {scores.shape} and {masked.shape}")


def truth_gradient(
    scores: Tensor, masked: Tensor, supervised: Supervised, scale: float
) -> tuple[Tensor | float, Tensor]:
    """The supervised loss of a step's rows, and ``scale`` times its gradient: compiled on the CPU, else autograd's.

    Args:
        scores: [b, S]; no gradient flows through this call.
        masked: bool [b, S]; for ``bpr`` column 1 is masked where a row has no negative.
        supervised: ``softmax`` = :func:`sampled_softmax_loss`, ``bpr`` = :func:`bpr_loss` of columns 0 and 1.
        scale: factor of the gradient, not of the loss.

    Returns:
        the sum over rows, and [b, S].
    """
    scores = scores.detach()
    if supervised == "softmax" and _compiled(scores):
        grad = torch.empty_like(scores)
        loss: float = loss_kernels.sampled_softmax(*_arrays(scores, masked, grad), np.float32(scale))
        return loss, grad

    def truth(own: Tensor) -> Tensor:
        if supervised == "softmax":
            return sampled_softmax_loss(own, masked)
        return bpr_loss(own[:, 0], own[:, 1], ~masked[:, 1])

    return _by_autograd(truth, scores, scale)


def add_kl_gradient(
    scores: Tensor, peers: Peers, masked: Tensor, own: int, scale: float, grad: Tensor
) -> Tensor | float:
    """:func:`mutual_kl_loss` of modality ``own``; adds ``scale`` times its gradient to ``grad`` [b, S] in place."""
    scores = scores.detach()
    if peers.values.shape[0] == 1:
        return 0.0
    if peers.teacher == "scores" and _compiled(scores):
        present = masked.new_ones(()).expand(masked.shape) if peers.present is None else peers.present[own]
        cells = _arrays(scores, peers.values[own], peers.total, peers.count, present, masked)
        temperature = np.float32(1 / peers.temperature)
        compiled: float = loss_kernels.mutual_kl(*cells, temperature, np.float32(scale), grad.numpy())
        return compiled
    loss, more = _by_autograd(lambda student: mutual_kl_loss(student, peers, masked, own), scores, scale)
    grad += more
    return loss


def _by_autograd(loss_of: Callable[[Tensor], Tensor], scores: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = scores.requires_grad_()
        loss = loss_of(leaf)
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad * scale


def _compiled(scores: Tensor) -> bool:
    return scores.device.type == "cpu" and scores.dtype == torch.float32


def _arrays(*tensors: Tensor) -> list[Any]:
    return [t.detach().contiguous().numpy() for t in tensors]
