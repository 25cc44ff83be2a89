"""Embedding gradients: one order of additions for every thread count."""

import pytest
import torch

from bi_compile.templates.scatter import embedding_grad, oracle
from tests.bits import assert_same_bits, order_sensitive, same_bits

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_oracle(dtype, threads):
    torch.set_num_threads(threads)
    grad = order_sensitive(9, 31, 67, dtype=dtype)
    indices = torch.randint(0, 5, (9, 31))
    assert_same_bits(embedding_grad(grad, indices, 7, 2), oracle.embedding_grad(grad, indices, 7, 2))


def test_as_accurate_as_stock():
    grad, indices = torch.randn(500, 33), torch.randint(0, 4, (500,))
    exact = torch.ops.aten.embedding_dense_backward(grad.double(), indices, 4, -1, False)
    ours = embedding_grad(grad, indices, 4, -1)
    stock = torch.ops.aten.embedding_dense_backward(grad, indices, 4, -1, False)
    assert (ours - exact).abs().max() <= 1.5 * (stock - exact).abs().max() + 1e-6


def test_the_data_shows_a_change_of_order():
    grad, indices = order_sensitive(300, 8), torch.zeros(300, dtype=torch.long)
    back = embedding_grad(grad.flip(0), indices, 1, -1)
    assert not same_bits(embedding_grad(grad, indices, 1, -1), back)


def test_strided_gradients_and_nothing():
    grad = torch.randn(20, 12)
    indices = torch.randint(0, 3, (12,))
    assert_same_bits(
        embedding_grad(grad.t(), indices, 3, -1), embedding_grad(grad.t().contiguous(), indices, 3, -1)
    )
    assert not embedding_grad(grad[:0], indices[:0], 3, -1).any()


def test_an_index_out_of_range_is_refused():
    with pytest.raises(IndexError, match="embedding index 3 out of 3"):
        embedding_grad(torch.ones(1, 4), torch.tensor([3]), 3, -1)
