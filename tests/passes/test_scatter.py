"""Gradients of embeddings are added in one order."""

import pytest
import torch

from tests.passes.tables import check_left_alone, check_rewritten

X = torch.randn(3, 5, 7)
INDEX = torch.randint(0, 4, (3, 5))

REWRITTEN = {
    "embedding gradient": (
        lambda g, i: torch.ops.aten.embedding_dense_backward(g, i, 4, 1, False),
        (X, INDEX),
        {"bi_compile.embedding_grad"},
    ),
}
LEFT_ALONE = {
    "embedding": (lambda x, i: torch.nn.functional.embedding(i, x[0]), (X, INDEX)),
    "gather": (lambda x, i: x[:, 0].gather(1, i), (X, INDEX)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])
