"""Planted data with a known right answer: each modality tells one part of why users like items.

Every user u and item i has a latent vector of M blocks of ``BLOCK_DIM`` numbers. The utility is the sum over
blocks of <p_u^m, q_i^m> / sqrt(BLOCK_DIM), plus a small item popularity; a user's interactions are the items
with the highest ``utility + noise * Gumbel``, which is sampling without replacement from the softmax of
utility / noise (Gumbel top-k: Kool, van Hoof and Welling 2019). The features of modality m reveal block m of
the items, plus noise, by a random linear map, and nothing else: one modality alone explains a part, all of
them together explain all. What the ranking by true utility reaches is stored in the provenance.

Axes: U users, I items, M modalities, B users in a block of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gnnmr_dist import __version__
from gnnmr_dist.data.format import SPLITS
from gnnmr_dist.data.writer import ModalityData, write_dataset
from gnnmr_dist.errors import InputError
from gnnmr_dist.randomness import Purpose, generator
from gnnmr_dist.storage import Address

FloatArray = npt.NDArray[np.float32]

BLOCK_DIM = 4
NUM_CLUSTERS = 16  # values of a category modality
NUM_TAGS, TAGS_PER_ITEM = 32, 4  # of a bag modality
POPULARITY = 0.3  # standard deviation of the items' popularity, against about 1 for each block's score
ORACLE_USERS = 10_000  # the oracle is measured on the first so many users: they are alike
K = 20
_SCORES = 1 << 22  # user-item scores held at once


@dataclass(frozen=True)
class Latents:
    """The truth: ``users`` float32 [U, M, BLOCK_DIM], ``items`` [I, M, BLOCK_DIM], ``popularity`` [I]."""

    users: FloatArray
    items: FloatArray
    popularity: FloatArray

    def utility(self, users: slice, blocks: slice = slice(None)) -> FloatArray:
        """True utility [B, I] of all items for some users; with fewer ``blocks``, the part these explain."""
        p, q = self.users[users, blocks], self.items[:, blocks]
        scores = p.reshape(p.shape[0], -1) @ q.reshape(q.shape[0], -1).T
        return np.asarray(scores / np.float32(BLOCK_DIM**0.5) + self.popularity, np.float32)


@dataclass(frozen=True)
class Plan:
    """What to draw; the arguments of :func:`synthetic_dataset`."""

    num_users: int
    num_items: int
    num_modalities: int
    interactions_per_user: int
    noise: float
    missing: float
    seed: int
    cold_users: int
    cold_items: int


def modality_names(num_modalities: int) -> list[str]:
    """Names of M modalities: text, image, audio, category, m5, m6...; from M = 2 on, one is "category"."""
    if num_modalities < 4:
        return ["text", "image"][: max(num_modalities - 1, 1)] + ["category"][: num_modalities - 1]
    return ["text", "image", "audio", "category", *(f"m{m}" for m in range(5, num_modalities + 1))]


def synthetic_dataset(
    output: Address,
    *,
    num_users: int = 600,
    num_items: int = 400,
    num_modalities: int = 3,
    interactions_per_user: int = 20,
    noise: float = 0.5,
    missing: float = 0.1,
    seed: int = 0,
    cold_users: int = 5,
    cold_items: int = 5,
    strength: Sequence[float] | None = None,
    feature_dim: int = 32,
    name: str = "synthetic",
) -> str:
    """Write a planted data set and return its digest; the same arguments give the same data.

    ``interactions_per_user`` is a mean (Poisson, at least 3). ``strength`` [M] is the signal-to-noise ratio
    of each modality's features (default: 4, and 1 for the second, the weak one). Of M modalities the one
    named "category" holds cluster numbers, "m5" bags of tags, the others dense rows; a share ``missing`` of
    the rows of each is missing. Interactions are split 8:1:1 at random; every user keeps a train interaction,
    but for the first ``cold_users`` users, who have none; the first ``cold_items`` items stand in valid and
    test only. The provenance has ``oracle``: Recall@20 on test (train items masked) of the ranking by true
    utility, which no model beats by more than luck, by each modality's block alone, and by true popularity.

    Raises:
        InputError: an argument is out of range, or ``output`` is not new or empty.
    """
    plan = Plan(
        num_users,
        num_items,
        num_modalities,
        interactions_per_user,
        noise,
        missing,
        seed,
        cold_users,
        cold_items,
    )
    default = [4.0 if m != 1 else 1.0 for m in range(num_modalities)]
    strengths = default if strength is None else [float(value) for value in strength]
    _check_plan(plan, strengths, feature_dim)
    truth = _latents(plan)
    splits, oracle = _splits(plan, truth)
    arguments = {**vars(plan), "strength": strengths, "feature_dim": feature_dim}
    return write_dataset(
        output,
        name=name,
        users=pa.table({"id": [f"u{u}" for u in range(num_users)]}),
        items=pa.table(
            {"id": [f"i{i}" for i in range(num_items)], "title": [f"Item {i}" for i in range(num_items)]}
        ),
        splits=splits,
        modalities=[_modality(plan, truth, m, strengths[m], feature_dim) for m in range(num_modalities)],
        provenance={
            "source": "gnnmr_dist.data.synthetic",
            "arguments": arguments,
            "oracle": oracle,
            "package_version": __version__,
        },
    )


def _check_plan(plan: Plan, strengths: list[float], feature_dim: int) -> None:
    for what, value, low, high in (
        ("num_modalities", plan.num_modalities, 1, 100),
        ("num_items", plan.num_items, 2 * NUM_TAGS, 2**30),
        ("num_users", plan.num_users, 20, 2**30),
        ("interactions_per_user", plan.interactions_per_user, 3, plan.num_items // 4),
        ("noise", plan.noise, 0, 1e6),
        ("missing", plan.missing, 0, 0.9),
        ("cold_users", plan.cold_users, 0, plan.num_users // 2),
        ("cold_items", plan.cold_items, 0, plan.num_items // 2),
        ("feature_dim", feature_dim, 1, 2**16),
    ):
        if not low <= value <= high:
            raise InputError(f"synthetic data: expected {what} in {low}..{high}, got {value}")
    if len(strengths) != plan.num_modalities or not all(0 < value < float("inf") for value in strengths):
        raise InputError(
            f"synthetic data: expected {plan.num_modalities} positive strengths, got {strengths}"
        )


def _latents(plan: Plan) -> Latents:
    random = generator(plan.seed, Purpose.SYNTHETIC, 0)
    shape = (plan.num_modalities, BLOCK_DIM)
    return Latents(
        random.standard_normal((plan.num_users, *shape), np.float32),
        random.standard_normal((plan.num_items, *shape), np.float32),
        random.standard_normal(plan.num_items, np.float32) * np.float32(POPULARITY),
    )


def _splits(plan: Plan, truth: Latents) -> tuple[dict[str, Any], dict[str, Any]]:
    users, items, parts, oracle = _interactions(plan, truth)
    splits = {
        split: pa.table({"user": users[parts == part], "item": items[parts == part]})
        for part, split in enumerate(SPLITS)
    }
    return splits, oracle


def _interactions(
    plan: Plan, truth: Latents
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int8], dict[str, Any]]:
    """Users, items int32 [E], parts int8 [E] (0, 1, 2 as in SPLITS), and the oracle's figures."""
    users, items, parts, oracle = [], [], [], _Oracle(modality_names(plan.num_modalities))
    for rows in _row_blocks(plan):
        chosen, part = _draw(plan, truth, rows)  # [B, I] bool and int8
        if rows.start < ORACLE_USERS:
            oracle.add(truth, rows, chosen & (part == 0), chosen & (part == 2))
        u, i = np.nonzero(chosen)
        users.append((u + rows.start).astype(np.int32))
        items.append(i.astype(np.int32))
        parts.append(part[u, i])
    return np.concatenate(users), np.concatenate(items), np.concatenate(parts), oracle.figures()


def _draw(plan: Plan, truth: Latents, rows: slice) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int8]]:
    """What the users ``rows`` take (bool [B, I]) and the split each pair would belong to (int8 [B, I])."""
    random = generator(plan.seed, Purpose.SYNTHETIC, 1, rows.start)
    size = (rows.stop - rows.start, plan.num_items)
    wanted = truth.utility(rows)
    # minus the log of an exponential variable is Gumbel
    wanted -= np.float32(plan.noise) * np.log(
        random.standard_exponential(size, np.float32) + np.float32(1e-30)
    )
    counts = np.clip(random.poisson(plan.interactions_per_user, size[0]), 3, plan.num_items // 2)
    warm = plan.cold_items + np.argmax(wanted[:, plan.cold_items :], axis=1)  # the best item that is not cold
    each = np.arange(size[0])
    wanted[each, warm] = np.inf
    chosen = wanted >= _kth_largest(wanted, counts)[:, None]
    part = (1 + (random.random(size, np.float32) < 0.5)).astype(np.int8)
    train = random.random(size, np.float32) < 0.8
    train[:, : plan.cold_items] = False
    train[each, warm] |= ~(train & chosen).any(axis=1)
    train[np.arange(rows.start, rows.stop) < plan.cold_users] = False
    part[train] = 0
    return chosen, part


def _kth_largest(scores: FloatArray, counts: npt.NDArray[np.int64]) -> FloatArray:
    """The counts[b]-th largest number of each row b, [B]."""
    most = int(counts.max())
    top = np.sort(np.partition(scores, scores.shape[1] - most, axis=1)[:, -most:], axis=1)
    return np.asarray(np.take_along_axis(top, most - counts[:, None], axis=1)[:, 0])


def _row_blocks(plan: Plan) -> Iterator[slice]:
    step = max(1, _SCORES // plan.num_items)
    for start in range(0, plan.num_users, step):
        yield slice(start, min(start + step, plan.num_users))


class _Oracle:
    """Recall@20 of rankings by the truth and by parts of it: sums over users, divided once."""

    def __init__(self, names: list[str]) -> None:
        self._rankings = {"all": slice(None), "popularity": slice(0, 0)}
        self._rankings |= {name: slice(m, m + 1) for m, name in enumerate(names)}
        self._sums = dict.fromkeys(self._rankings, 0.0)
        self._users = 0

    def add(
        self, truth: Latents, rows: slice, train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]
    ) -> None:
        tested = test.sum(axis=1)
        self._users += int(np.count_nonzero(tested))
        for name, blocks in self._rankings.items():
            scores = np.where(train, np.float32(-np.inf), truth.utility(rows, blocks))
            top = np.argpartition(scores, -K, axis=1)[:, -K:]
            hits = np.take_along_axis(test, top, axis=1).sum(axis=1)
            self._sums[name] += float(np.sum(hits[tested > 0] / tested[tested > 0]))

    def figures(self) -> dict[str, Any]:
        recalls = {name: round(total / max(self._users, 1), 6) for name, total in self._sums.items()}
        return {"recall@20": recalls, "split": "test", "masked": "train", "users": self._users}


def _modality(plan: Plan, truth: Latents, m: int, strength: float, feature_dim: int) -> ModalityData:
    random = generator(plan.seed, Purpose.SYNTHETIC, 2, m)
    name = modality_names(plan.num_modalities)[m]
    block = truth.items[:, m]  # [I, BLOCK_DIM]
    seen = block + random.standard_normal(block.shape, np.float32) / np.float32(strength)
    present = random.random(plan.num_items) >= plan.missing
    present[np.argmax(random.random(plan.num_items))] = True
    if name == "category":
        return _category(name, block, seen, present, random)
    if name == "m5":
        return _bag(name, seen, present, random)
    linear = random.standard_normal((BLOCK_DIM, feature_dim), np.float32) / np.float32(BLOCK_DIM**0.5)
    return ModalityData(name, "dense", feature_dim, present, (seen @ linear).astype(np.float16))


def _category(
    name: str,
    block: FloatArray,
    seen: FloatArray,
    present: npt.NDArray[np.bool_],
    random: np.random.Generator,
) -> ModalityData:
    """The number of the nearest of NUM_CLUSTERS centres, which are the blocks of some items."""
    centres = block[random.choice(len(block), NUM_CLUSTERS, replace=False)]
    nearest = np.argmin(((seen[:, None] - centres) ** 2).sum(axis=2), axis=1).astype(np.int32)
    codes = np.where(present, nearest, np.int32(-1))
    vocabulary = [f"cluster {code}" for code in range(NUM_CLUSTERS)]
    return ModalityData(name, "category", NUM_CLUSTERS, present, codes, vocabulary=vocabulary)


def _bag(
    name: str, seen: FloatArray, present: npt.NDArray[np.bool_], random: np.random.Generator
) -> ModalityData:
    """The TAGS_PER_ITEM of NUM_TAGS random directions in which a block reaches farthest."""
    directions = random.standard_normal((BLOCK_DIM, NUM_TAGS), np.float32)
    reach = seen @ (directions / np.linalg.norm(directions, axis=0))
    best = np.argsort(-reach, axis=1, kind="stable")[present, :TAGS_PER_ITEM]
    codes = np.sort(best, axis=1).astype(np.int32).reshape(-1)
    offsets = np.concatenate([[0], np.cumsum(present * TAGS_PER_ITEM)]).astype(np.int64)
    vocabulary = [f"tag {code}" for code in range(NUM_TAGS)]
    return ModalityData(name, "bag", NUM_TAGS, present, offsets=offsets, codes=codes, vocabulary=vocabulary)
