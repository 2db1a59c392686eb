"""One pair of embedding tables out of M modalities: concatenation, average, aligned average.

Axes: M modalities, U users, I items, d embedding size. Each function takes one table per modality, users
[U, d_m] and items [I, d_m], and returns one table of users and one of items; score = dot product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def concatenation(
    users: Sequence[Tensor],
    items: Sequence[Tensor],
    present: Tensor | None = None,
    *,
    weight_missing: bool = False,
) -> tuple[Tensor, Tensor]:
    """GNNMR-con (method eq. 10): users [U, sum of d_m], items [I, sum of d_m]; score = sum over m of s^m.

    With ``weight_missing`` an item's score is M / n_i times the sum over its n_i present modalities (those it
    lacks are left out, the scale is kept); an item that lacks all of them uses all.

    Args:
        users: M tables [U, d_m]; sizes d_m may differ.
        items: M tables [I, d_m].
        present: bool [M, I], whether the item has the modality; needed with ``weight_missing`` only.
        weight_missing: leave missing modalities out.

    Raises:
        ValueError: tables do not fit each other, or ``present`` is wanting or has another shape than [M, I].
    """
    _check(users, items)
    if not weight_missing:
        return torch.cat(list(users), dim=1), torch.cat(list(items), dim=1)
    shape = (len(items), items[0].shape[0])
    if present is None or tuple(present.shape) != shape:
        got = "none" if present is None else tuple(present.shape)
        raise ValueError(f"weight_missing needs present of shape {shape}, got {got}")
    used = present | ~present.any(dim=0)
    weight = used * (len(items) / used.sum(dim=0))
    scaled = [h * w[:, None].to(h) for h, w in zip(items, weight, strict=True)]
    return torch.cat(list(users), dim=1), torch.cat(scaled, dim=1)


def average(users: Sequence[Tensor], items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """GNNMR-ave (method eq. 11): users [U, d], items [I, d]; score = (mean h_u) . (mean h_i), cross terms in.

    Raises:
        ValueError: tables do not fit each other, or modalities have different d.
    """
    _check(users, items, same_size=True)
    return torch.stack(list(users)).mean(dim=0), torch.stack(list(items)).mean(dim=0)


def aligned_average(users: Sequence[Tensor], items: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """As :func:`average`, after each modality was rotated onto the first (:func:`procrustes_rotation`).

    The rotation R is fitted on users and items stacked, and is orthogonal: (h_u R) . (h_i R) = h_u . h_i,
    so no modality's own scores change; only the cross terms of the average do.

    Raises:
        ValueError: tables do not fit each other, or modalities have different d.
    """
    _check(users, items, same_size=True)
    target = torch.cat([users[0], items[0]])
    rotations = [procrustes_rotation(torch.cat([u, i]), target) for u, i in zip(users, items, strict=True)]
    rotated_users = [u @ r for u, r in zip(users, rotations, strict=True)]
    return average(rotated_users, [i @ r for i, r in zip(items, rotations, strict=True)])


def procrustes_rotation(source: Tensor, target: Tensor) -> Tensor:
    """The orthogonal R [d, d] that minimises || source R - target ||_F for source and target [n, d].

    R = V W^T with the singular value decomposition source^T target = V S W^T (Schönemann 1966, "A generalized
    solution of the orthogonal Procrustes problem"). Computed in float64, returned in the dtype of ``source``.
    """
    left, _, right = torch.linalg.svd(source.double().T @ target.double())
    rotation: Tensor = left @ right
    return rotation.to(source.dtype)


def _check(users: Sequence[Tensor], items: Sequence[Tensor], *, same_size: bool = False) -> None:
    if not users or len(users) != len(items):
        raise ValueError(f"{len(users)} tables of users but {len(items)} of items")
    for m, (u, i) in enumerate(zip(users, items, strict=True)):
        same_rows = u.shape[0] == users[0].shape[0] and i.shape[0] == items[0].shape[0]
        if u.ndim != 2 or i.ndim != 2 or u.shape[1] != i.shape[1] or not same_rows:
            raise ValueError(f"modality {m}: users {tuple(u.shape)} and items {tuple(i.shape)} do not fit")
    if same_size and len({h.shape[1] for h in users}) > 1:
        raise ValueError(f"averages need one embedding size, got {[h.shape[1] for h in users]}")
