"""Compiled attention over more destinations than are taken together, against the torch form in float64; its bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnnmr_dist.models import attention
from gnnmr_dist.models.attention import additive_attention
from gnnmr_dist.models.blocks import Block, make_block

LENGTHS = [0, 1, 2, 15, 16, 17, 63, 64, 65, 130] * 14
LENGTHS[77] = 1500  # in the second batch of destinations: arrays of the first are too short for it
Given = tuple[Block, Tensor, Tensor, Tensor]


def problem(heads: int, width: int, dtype: torch.dtype) -> Given:
    """A block in which every edge has a source of its own, x, halves and a gradient of the sums."""
    length = torch.tensor(LENGTHS)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    edges, count = int(indptr[-1]), len(LENGTHS)
    generator = torch.Generator().manual_seed(heads * width)
    source = count + torch.randperm(edges, generator=generator)
    degree = torch.randint(1, 3000, (count + edges,), generator=generator).to(dtype)
    x, halves, grad = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((count + edges, heads, width), (count + edges, 2 * heads), (count, heads, width))
    )
    return make_block(indptr, source, degree), x, halves, grad


def results(given: Given, *, loop: bool, scaling: bool) -> list[Tensor]:
    """The sums, and the gradients of x and halves."""
    block, x, halves, grad = given
    x, halves = (t.clone().requires_grad_() for t in (x, halves))
    out = additive_attention(x, halves, block, loop=loop, slope=0.2, degree_scaling=scaling)
    return [out.detach(), *torch.autograd.grad(out, (x, halves), grad)]


@pytest.mark.parametrize(("loop", "scaling"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize(("heads", "width"), [(1, 64), (1, 37), (3, 16)])
def test_many_destinations(
    heads: int, width: int, loop: bool, scaling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x, halves, grad = given = problem(heads, width, torch.float32)
    found = results(given, loop=loop, scaling=scaling)
    some = torch.ones(len(LENGTHS), dtype=torch.bool) if loop else block.indptr.diff() > 0
    monkeypatch.setattr(attention, "compiled", lambda *_: False)
    exact = Block(block.indptr, block.source, block.degree.double())
    upper = grad.double() * some[:, None, None]  # without edges and loop there is nothing to sum
    expected = results((exact, x.double(), halves.double(), upper), loop=loop, scaling=scaling)
    for got, want in zip(found, expected, strict=True):
        rows = some.nonzero().squeeze(1) if got.shape[0] == len(LENGTHS) else torch.arange(got.shape[0])
        scale = float(want[rows].abs().max())
        torch.testing.assert_close(got[rows].double(), want[rows], rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize(("heads", "width"), [(1, 64), (1, 37), (4, 16)])
def test_a_destination_has_the_same_bits_alone(heads: int, width: int, loop: bool) -> None:
    block, x, halves, grad = given = problem(heads, width, torch.float32)
    together = results(given, loop=loop, scaling=True)
    for v in (3, 9, 66, 77, 88, 139):
        begin, end = int(block.indptr[v]), int(block.indptr[v + 1])
        rows = torch.cat([torch.tensor([v]), block.source[begin:end]])
        own = make_block(torch.tensor([0, end - begin]), torch.arange(1, end - begin + 1), block.degree[rows])
        alone = results((own, x[rows], halves[rows], grad[v : v + 1]), loop=loop, scaling=True)
        assert torch.equal(alone[0][0], together[0][v])
        for got, want in zip(alone[1:], together[1:], strict=True):
            assert torch.equal(got, want[rows])


def test_a_single_neighbour_gives_its_logit_no_gradient() -> None:
    block, x, halves, grad = problem(1, 64, torch.float32)
    found = results((block, x, halves, grad), loop=False, scaling=True)[2]
    single = block.source[block.indptr[:-1][block.indptr.diff() == 1]]
    assert single.numel() > 1
    assert not found[single].any()
