"""The truth (Eq. 7) and the peers (Eq. 8): pure functions of score tensors.

Axes: M modalities, b rows (user, positive item), S columns of a row. Column 0 is the positive item; with BPR column 1
is the row's own negative; the rest are the step's shared candidates. Sums over rows are returned, never means: the
caller divides once by the size of the global batch, so any split of the rows gives the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

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
    if present is None:
        count = values.new_full((), values.shape[0]).expand(values.shape[1:])
        return Peers(values, None, values.sum(dim=0), count, teacher, temperature)
    weight = present.to(values.dtype)
    return Peers(values, present, (values * weight).sum(dim=0), weight.sum(dim=0), teacher, temperature)


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
