"""What each ensemble scores, and that rotations change nobody's own scores."""

import pytest
import torch
from torch import Tensor

from gnnmr_dist.ensemble import aligned_average, average, concatenation, procrustes_rotation

M, NUM_USERS, NUM_ITEMS, D = 3, 7, 9, 4


def tables(sizes: list[int], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    g = torch.Generator().manual_seed(seed)
    double = torch.float64
    users = [torch.randn(NUM_USERS, d, generator=g, dtype=double) for d in sizes]
    return users, [torch.randn(NUM_ITEMS, d, generator=g, dtype=double) for d in sizes]


def rotation(d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q


def test_concatenation_sums_scores() -> None:
    users, items = tables([4, 2, 5])
    h_u, h_i = concatenation(users, items)
    assert h_u.shape == (NUM_USERS, 11)
    torch.testing.assert_close(h_u @ h_i.T, sum(u @ i.T for u, i in zip(users, items, strict=True)))


def test_missing_modalities_are_left_out_and_the_rest_scaled() -> None:
    users, items = tables([D] * M)
    present = torch.ones(M, NUM_ITEMS, dtype=torch.bool)
    present[1, 0] = False
    present[:2, 1] = False
    present[:, 2] = False
    h_u, h_i = concatenation(users, items, present, weight_missing=True)
    s = [u @ i.T for u, i in zip(users, items, strict=True)]
    got = h_u @ h_i.T
    torch.testing.assert_close(got[:, 0], 3 / 2 * (s[0] + s[2])[:, 0])
    torch.testing.assert_close(got[:, 1], 3 * s[2][:, 1])
    torch.testing.assert_close(got[:, 2:], sum(s)[:, 2:])
    plain = concatenation(users, items, present)
    torch.testing.assert_close(plain[0] @ plain[1].T, sum(s))


def test_average_has_the_cross_terms() -> None:
    users = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])]
    items = [torch.tensor([[2.0, 2.0]]), torch.tensor([[4.0, 0.0]])]
    h_u, h_i = average(users, items)
    assert h_u.tolist() == [[0.5, 1.5]]
    assert (h_u @ h_i.T).item() == 0.5 * 3.0 + 1.5 * 1.0
    cross = sum((u @ i.T).item() for u in users for i in items) / 4
    assert (h_u @ h_i.T).item() == cross


def test_aligned_average_undoes_rotations() -> None:
    users, items = tables([D])
    turned = [rotation(D, m) for m in range(M)]
    h_u, h_i = aligned_average([users[0] @ r for r in turned], [items[0] @ r for r in turned])
    torch.testing.assert_close(h_u @ h_i.T, users[0] @ items[0].T)
    torch.testing.assert_close(h_u, users[0] @ turned[0])
    plain_u, plain_i = average([users[0] @ r for r in turned], [items[0] @ r for r in turned])
    assert not torch.allclose(plain_u @ plain_i.T, users[0] @ items[0].T, atol=0.1)


def test_rotation_is_orthogonal_best_and_keeps_own_scores() -> None:
    users, items = tables([D] * 2, seed=4)
    source, target = (torch.cat([users[m], items[m]]) for m in (1, 0))
    best = procrustes_rotation(source, target)
    torch.testing.assert_close(best @ best.T, torch.eye(D, dtype=torch.float64))
    own, turned = users[1] @ items[1].T, (users[1] @ best) @ (items[1] @ best).T
    assert (own - turned).abs().max() < 1e-6
    error = torch.linalg.norm(source @ best - target)
    others = [torch.linalg.norm(source @ rotation(D, s) - target) for s in range(50)]
    nearby = [best @ torch.linalg.matrix_exp(e - e.T) for e in 1e-3 * torch.randn(20, D, D).double()]
    others += [torch.linalg.norm(source @ r - target) for r in nearby]
    assert all(error <= other for other in others)


def test_own_scores_survive_in_float32() -> None:
    users, items = tables([D] * 2, seed=5)
    u, i = users[1].float(), items[1].float()
    best = procrustes_rotation(torch.cat([u, i]), torch.cat([users[0], items[0]]).float())
    assert best.dtype == torch.float32
    assert ((u @ best) @ (i @ best).T - u @ i.T).abs().max() < 1e-5


@pytest.mark.parametrize("combine", [average, aligned_average])
def test_averages_refuse_unequal_sizes(combine: object) -> None:
    users, items = tables([4, 3])
    with pytest.raises(ValueError, match="one embedding size"):
        combine(users, items)  # type: ignore[operator]


def test_tables_that_do_not_fit_are_refused() -> None:
    users, items = tables([D] * M)
    for bad_users, bad_items in ((users[:2], items), ([], []), ([users[0][:, :2], *users[1:]], items)):
        with pytest.raises(ValueError, match=r"tables of users|do not fit"):
            concatenation(bad_users, bad_items)
    with pytest.raises(ValueError, match="modality 1"):
        average([users[0], users[1][:3]], items[:2])
    for present in (None, torch.ones(M, NUM_ITEMS + 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match="needs present"):
            concatenation(users, items, present, weight_missing=True)
