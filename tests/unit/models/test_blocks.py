"""Blocks: weighted sums on every path, attention softmax against a dense masked softmax."""

from __future__ import annotations

import pytest
import torch
from helpers import random_graph, whole_block
from torch import Tensor

from gnnmr_dist.models import blocks
from gnnmr_dist.models.blocks import Block, edge_softmax, make_block, weighted_sum


def problem(dtype: torch.dtype = torch.float64) -> tuple[Block, Tensor, Tensor]:
    block = whole_block(random_graph(1, num_users=9, num_edges=18), dtype)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(block.num_edges, 2, generator=generator, dtype=dtype, requires_grad=True)
    x = torch.randn(block.num_destinations, 2, 3, generator=generator, dtype=dtype, requires_grad=True)
    return block, weight, x


def test_gradcheck() -> None:
    block, weight, x = problem()
    assert torch.autograd.gradcheck(lambda w, x: weighted_sum(w, x, block), (weight, x))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_torch_path_equals_the_compiled_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    block, weight, x = problem(dtype)
    found = []
    for force_torch in (False, True):
        if force_torch:
            monkeypatch.setattr(blocks, "compiled", lambda *_: False)
        out = weighted_sum(weight, x, block)
        found.append((out, *torch.autograd.grad(out.square().sum(), (weight, x))))
    for compiled, plain in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    block, weight, x = problem(torch.float32)
    half = x.detach().to(dtype).requires_grad_()
    out = weighted_sum(weight, half, block)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, weighted_sum(weight, half.float(), block))
    out.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype


def test_only_matching_floats_on_the_cpu_are_compiled() -> None:
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert blocks.compiled(single, single)
    assert blocks.compiled(double, double)
    assert not blocks.compiled(single, double)
    assert not blocks.compiled(single.half(), single.half())


def dense_softmax(logits: Tensor, block: Block, own: Tensor | None) -> Tensor:
    """[D, S, H]: softmax over the neighbours (and the node itself) of every destination."""
    size = block.num_destinations
    matrix = torch.full((size, size, logits.shape[1]), float("-inf"), dtype=logits.dtype)
    matrix = matrix.index_put((block.destination, block.source), logits)
    if own is not None:
        matrix = matrix.index_put((torch.arange(size), torch.arange(size)), own)
    return torch.softmax(matrix, dim=1)


@pytest.mark.parametrize("with_self", [False, True])
def test_edge_softmax_is_a_masked_dense_softmax(with_self: bool) -> None:
    block, logits, _ = problem()
    own = torch.linspace(-2, 2, 2 * block.num_destinations, dtype=torch.float64).view(-1, 2)
    own = own.requires_grad_() if with_self else None
    weight, own_weight = edge_softmax(logits, block, own)
    expected = dense_softmax(logits, block, own)
    torch.testing.assert_close(weight, expected[block.destination, block.source])
    inputs = [logits] if own is None else [logits, own]
    value = weight.square().sum()
    wanted = expected[block.destination, block.source].square().sum()
    if own is not None and own_weight is not None:
        diagonal = expected.diagonal(dim1=0, dim2=1).T
        torch.testing.assert_close(own_weight, diagonal)
        value, wanted = value + own_weight.pow(3).sum(), wanted + diagonal.pow(3).sum()
    for got, want in zip(
        torch.autograd.grad(value, inputs), torch.autograd.grad(wanted, inputs), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("with_self", [False, True])
def test_edge_softmax_of_extreme_logits_is_finite(with_self: bool) -> None:
    block, logits, _ = problem(torch.float32)
    logits = (logits.detach() * 1e4).requires_grad_()
    own = torch.full((block.num_destinations, 2), -3e4) if with_self else None
    weight, own_weight = edge_softmax(logits, block, own)
    weight.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(weight).all()
    assert torch.isfinite(logits.grad).all()
    total = torch.zeros(block.num_destinations, 2).index_add(0, block.destination, weight)
    if own_weight is not None:
        torch.testing.assert_close(total + own_weight, torch.ones_like(total))


def test_edge_softmax_without_edges() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    block = make_block(torch.zeros(3, dtype=torch.int64), empty, torch.zeros(2))
    weight, own = edge_softmax(torch.zeros(0, 1), block, torch.tensor([[5.0], [-5.0]]))
    assert weight.shape == (0, 1)
    assert own is not None
    assert own.tolist() == [[1.0], [1.0]]


def test_make_block_refuses_arrays_that_do_not_fit() -> None:
    indptr, source, degree = torch.tensor([0, 1, 3]), torch.tensor([0, 1, 0]), torch.ones(2)
    block = make_block(indptr, source, degree)
    assert block.destination.tolist() == [0, 1, 1]
    assert block.sampled().tolist() == [1, 2]
    assert (block.num_destinations, block.num_edges) == (2, 3)
    with pytest.raises(ValueError, match="degrees"):
        make_block(indptr, source, torch.ones(1))
    with pytest.raises(ValueError, match="sources"):
        make_block(indptr, source[:2], degree)
