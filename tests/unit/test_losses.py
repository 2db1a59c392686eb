"""Losses against hand arithmetic, and the properties that a mistaken loss would break."""

from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gnnmr_dist.losses import Teacher, bpr_loss, make_peers, mutual_kl_loss, sampled_softmax_loss

TEACHERS: tuple[Teacher, ...] = ("scores", "distributions", "bernoulli")


def logs(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def kl(
    scores: Tensor, own: int = 0, masked: Tensor | None = None, present: Tensor | None = None, **how: object
) -> Tensor:
    masked = torch.zeros(scores.shape[1:], dtype=torch.bool) if masked is None else masked
    return mutual_kl_loss(scores[own], make_peers(scores, present, masked, **how), masked, own)  # type: ignore[arg-type]


def random_scores(seed: int, modalities: int = 3, rows: int = 4, columns: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(modalities, rows, columns, generator=generator, dtype=torch.float64) * 2


def test_bpr_by_hand() -> None:
    # differences 2 - 1 = 1 and 0 - 3 = -3; -ln sigmoid(1) = ln(1 + e^-1), -ln sigmoid(-3) = ln(1 + e^3)
    expected = 0.31326168751822286 + 3.048587351573742
    assert bpr_loss(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 3.0])).item() == pytest.approx(
        expected, rel=1e-6
    )


def test_bpr_leaves_out_rows_without_a_negative() -> None:
    positive = torch.tensor([2.0, 0.0], requires_grad=True)
    loss = bpr_loss(positive, torch.tensor([1.0, 3.0]), torch.tensor([True, False]))
    loss.backward()
    assert loss.item() == pytest.approx(0.31326168751822286, rel=1e-6)
    # d/dx ln(1 + e^-x) = -1 / (1 + e^x), at x = 1: -0.268941
    assert positive.grad is not None
    assert positive.grad.tolist() == pytest.approx([-0.2689414213699951, 0.0])


@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((3, 1), (3,)), ((3,), (1,)), ((3, 1), (3, 1))])
def test_bpr_never_broadcasts(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="alike"):
        bpr_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_sampled_softmax_by_hand() -> None:
    # exp(scores) = 3, 2, 1, 4 with 4 masked: -ln(3 / (3 + 2 + 1)) = ln 2; second row 1, 1, 1, 1: ln 4
    masked = torch.tensor([[False, False, False, True], [False] * 4])
    loss = sampled_softmax_loss(logs([3, 2, 1, 4], [1, 1, 1, 1]), masked)
    assert loss.item() == pytest.approx(log(2) + log(4), rel=1e-12)


def test_sampled_softmax_refuses_what_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="alike"):
        sampled_softmax_loss(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="positive"):
        sampled_softmax_loss(torch.zeros(1, 3), torch.tensor([[True, False, False]]))


def test_kl_of_mean_scores_by_hand() -> None:
    # peers exp = (9, 1) and (1, 1): mean of logs = log(3, 1), softmax (3/4, 1/4); student (1/2, 1/2)
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304098831... - 0.173286795... = 0.130812035...
    scores = torch.stack([logs([1, 1]), logs([9, 1]), logs([1, 1])])
    assert kl(scores).item() == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), rel=1e-12)
    assert kl(scores).item() == pytest.approx(0.13081203594113694, rel=1e-12)


def test_kl_of_mean_distributions_by_hand() -> None:
    # peers (9/10, 1/10) and (1/2, 1/2): mean (7/10, 3/10); KL to (1/2, 1/2) = .7 ln 1.4 + .3 ln .6
    scores = torch.stack([logs([1, 1]), logs([9, 1]), logs([1, 1])])
    expected = 0.7 * log(1.4) + 0.3 * log(0.6)
    assert kl(scores, teacher="distributions").item() == pytest.approx(expected, rel=1e-12)


def test_bernoulli_kl_by_hand() -> None:
    # column 0: teacher sigmoid(ln 3) = 3/4, student 1/2: .75 ln 1.5 + .25 ln .5; column 1: both 1/2: 0; mean over two
    scores = torch.stack([logs([1, 1]), logs([3, 1])])
    expected = (0.75 * log(1.5) + 0.25 * log(0.5)) / 2
    assert kl(scores, teacher="bernoulli").item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_temperature_divides_the_scores_of_both_sides(teacher: Teacher) -> None:
    scores = random_scores(0)
    warm = kl(2.5 * scores, teacher=teacher, temperature=2.5)
    torch.testing.assert_close(warm, kl(scores, teacher=teacher))


@pytest.mark.parametrize("teacher", TEACHERS)
@given(seed=st.integers(0, 2**31))
def test_kl_is_a_kl_divergence(teacher: Teacher, seed: int) -> None:
    scores = random_scores(seed)
    assert kl(scores, teacher=teacher).item() >= 0
    alike = scores[:1].expand(3, -1, -1)
    # cross-entropy would give the entropy here, about ln 5 per row
    assert kl(alike, teacher=teacher).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_no_gradient_reaches_a_peer(teacher: Teacher) -> None:
    scores = random_scores(1).requires_grad_()
    kl(scores, own=1, teacher=teacher).backward()
    assert scores.grad is not None
    assert scores.grad[1].abs().sum() > 0
    assert not scores.grad[[0, 2]].any()


def test_gradient_of_kl_by_hand() -> None:
    # d KL / d logits = student - teacher = (1/2 - 3/4, 1/2 - 1/4)
    scores = torch.stack([logs([1, 1]), logs([3, 1])]).requires_grad_()
    kl(scores).backward()
    assert scores.grad is not None
    assert scores.grad[0, 0].tolist() == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize("teacher", TEACHERS)
def test_masked_columns_stand_on_neither_side(teacher: Teacher) -> None:
    scores, masked = random_scores(2), torch.zeros(4, 5, dtype=torch.bool)
    masked[:, 2] = True
    changed = scores.clone()
    changed[:, :, 2] += 100 * random_scores(13)[:, :, 0]
    without = scores[:, :, [0, 1, 3, 4]]
    for other in (changed, scores):
        torch.testing.assert_close(kl(other, masked=masked, teacher=teacher), kl(without, teacher=teacher))


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_missing_peer_says_nothing_about_that_cell(teacher: Teacher) -> None:
    scores = random_scores(3)
    present = torch.ones(3, 4, 5, dtype=torch.bool)
    present[1, :, 3] = False
    changed = scores.clone()
    changed[1, :, 3] += 7
    before, after = (kl(s, present=present, teacher=teacher) for s in (scores, changed))
    torch.testing.assert_close(before, after)
    assert not torch.allclose(before, kl(scores, teacher=teacher))  # and its absence matters


def test_missing_peer_by_hand() -> None:
    # column 0 has both peers: mean log(9 * 1)/2 = log 3; column 1 only the second: log 1. Teacher (3/4, 1/4).
    scores = torch.stack([logs([1, 1]), logs([9, 100]), logs([1, 1])])
    present = torch.ones(3, 1, 2, dtype=torch.bool)
    present[1, 0, 1] = False
    assert kl(scores, present=present).item() == pytest.approx(0.13081203594113694, rel=1e-12)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_cells_that_no_peer_judges_count_on_neither_side(teacher: Teacher) -> None:
    scores = random_scores(4)
    present = torch.ones(3, 4, 5, dtype=torch.bool)
    present[1:, :, 4] = False
    value = kl(scores, present=present, teacher=teacher)
    torch.testing.assert_close(value, kl(scores[:, :, :4], teacher=teacher))
    student = scores[0].clone().requires_grad_()
    masked = torch.zeros(4, 5, dtype=torch.bool)
    mutual_kl_loss(student, make_peers(scores, present, masked, teacher=teacher), masked, 0).backward()
    assert student.grad is not None
    assert not student.grad[:, 4].any()


@pytest.mark.parametrize("teacher", TEACHERS)
def test_rows_without_any_judge_cost_nothing(teacher: Teacher) -> None:
    scores = random_scores(5)
    present = torch.zeros(3, 4, 5, dtype=torch.bool)
    present[0] = True
    assert kl(scores, present=present, teacher=teacher).item() == 0
    assert kl(scores, masked=torch.ones(4, 5, dtype=torch.bool), teacher=teacher).item() == 0


@pytest.mark.parametrize("teacher", TEACHERS)
def test_all_present_is_the_same_bits_as_no_table_of_presence(teacher: Teacher) -> None:
    scores = random_scores(6).float()
    everywhere = kl(scores, present=torch.ones(3, 4, 5, dtype=torch.bool), teacher=teacher)
    assert torch.equal(everywhere, kl(scores, teacher=teacher))


def test_one_modality_has_no_peers() -> None:
    assert kl(random_scores(7, modalities=1)).item() == 0


@pytest.mark.parametrize("teacher", TEACHERS)
def test_losses_are_sums_over_rows(teacher: Teacher) -> None:
    scores, masked = random_scores(8, rows=6), random_scores(12, rows=6)[0] < -1
    masked[:, 0] = False
    parts = [slice(0, 1), slice(1, 4), slice(4, 6), slice(6, 6)]
    split = sum(kl(scores[:, p], masked=masked[p], teacher=teacher) for p in parts)
    torch.testing.assert_close(kl(scores, masked=masked, teacher=teacher), split)
    torch.testing.assert_close(
        sampled_softmax_loss(scores[0], masked),
        sum(sampled_softmax_loss(scores[0, p], masked[p]) for p in parts),
    )
    positive, negative = scores[0, :, 0], scores[0, :, 1]
    torch.testing.assert_close(
        bpr_loss(positive, negative), sum(bpr_loss(positive[p], negative[p]) for p in parts)
    )


def test_misshapen_scores_are_refused() -> None:
    masked = torch.zeros(4, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected"):
        make_peers(random_scores(0, columns=4), None, masked)
    with pytest.raises(ValueError, match="expected"):
        make_peers(random_scores(0), torch.ones(2, 4, 5, dtype=torch.bool), masked)
    peers = make_peers(random_scores(0), None, masked)
    with pytest.raises(ValueError, match="expected peers"):
        mutual_kl_loss(torch.zeros(4, 4), peers, torch.zeros(4, 4, dtype=torch.bool), 0)
    with pytest.raises(ValueError, match="alike"):
        mutual_kl_loss(torch.zeros(4, 5), peers, torch.zeros(4, 1, dtype=torch.bool), 0)


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_extreme_scores_stay_finite(teacher: Teacher, size: float) -> None:
    scores = (random_scores(9).float() * size).requires_grad_()
    masked = torch.zeros(4, 5, dtype=torch.bool)
    masked[:, 3] = True
    total = kl(scores, masked=masked, teacher=teacher) + sampled_softmax_loss(scores[0], masked)
    total = total + bpr_loss(scores[0, :, 0], scores[0, :, 1])
    total.backward()
    assert scores.grad is not None
    assert torch.isfinite(total)
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("teacher", TEACHERS)
def test_gradients_are_those_of_the_formulas(teacher: Teacher) -> None:
    scores, masked = random_scores(10), torch.zeros(4, 5, dtype=torch.bool)
    masked[1, 2] = True
    peers = make_peers(scores, None, masked, teacher=teacher, temperature=1.7)
    student = random_scores(11)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda s: mutual_kl_loss(s, peers, masked, 2), (student,))
    assert torch.autograd.gradcheck(lambda s: sampled_softmax_loss(s, masked), (student,))
    assert torch.autograd.gradcheck(lambda s: bpr_loss(s[:, 0], s[:, 1]), (student,))
