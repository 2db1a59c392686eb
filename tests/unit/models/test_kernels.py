"""The compiled loops against dense products."""

from __future__ import annotations

import pytest
import torch
from helpers import random_graph, whole_block
from torch import Tensor

from gnnmr_dist.models import kernels
from gnnmr_dist.models.blocks import Block


def dense(block: Block, weight: Tensor, num_sources: int) -> Tensor:
    """[D, S, H] with the edges' weights in place."""
    matrix = torch.zeros(block.num_destinations, num_sources, weight.shape[1], dtype=weight.dtype)
    return matrix.index_put((block.destination, block.source), weight)


def problem(dtype: torch.dtype, heads: int = 2) -> tuple[Block, Tensor, Tensor]:
    block = whole_block(random_graph(num_users=9, num_edges=18), dtype)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(block.num_edges, heads, generator=generator, dtype=dtype)
    x = torch.randn(block.num_destinations, heads, 3, generator=generator, dtype=dtype)
    return block, weight, x


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_sum_and_gradients_equal_dense_products(dtype: torch.dtype, tolerance: float) -> None:
    block, weight, x = problem(dtype)
    assert (block.sampled() == 0).any(), "the graph has a node without edges"
    weight.requires_grad_()
    x.requires_grad_()
    expected = torch.einsum("vwh,whc->vhc", dense(block, weight, x.shape[0]), x)
    out = kernels.weighted_sum(block.indptr, block.source, weight, x)
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(out)
    expected.backward(grad)
    grad_weight, grad_x = kernels.weighted_sum_backward(block.indptr, block.source, weight, x, grad)
    torch.testing.assert_close(grad_weight, weight.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad_x, x.grad, rtol=tolerance, atol=tolerance)
    assert out.dtype == grad_x.dtype == grad_weight.dtype == dtype


def test_tensors_need_not_be_contiguous() -> None:
    block, weight, x = problem(torch.float32)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    one_head = weight[:, :1].expand(-1, 2)
    out = kernels.weighted_sum(block.indptr, block.source, one_head, strided)
    assert torch.equal(out, kernels.weighted_sum(block.indptr, block.source, one_head.contiguous(), x))
    grad = torch.ones(1).expand_as(out)
    got = kernels.weighted_sum_backward(block.indptr, block.source, one_head, strided, grad)
    want = kernels.weighted_sum_backward(
        block.indptr, block.source, one_head.contiguous(), x, grad.contiguous()
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_no_edges_at_all() -> None:
    indptr, source = torch.zeros(4, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    weight, x = torch.zeros(0, 2), torch.ones(5, 2, 3)
    assert torch.equal(kernels.weighted_sum(indptr, source, weight, x), torch.zeros(3, 2, 3))
    grad_weight, grad_x = kernels.weighted_sum_backward(indptr, source, weight, x, torch.ones(3, 2, 3))
    assert grad_weight.shape == (0, 2)
    assert not grad_x.any()
