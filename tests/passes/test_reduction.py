"""Sums, means, maxima and their kin become one row tree; integers stay as they are."""

import pytest
import torch
import torch.nn.functional as F

from tests.passes.tables import check_left_alone, check_rewritten

X = torch.randn(3, 5, 7) * 2

REWRITTEN = {
    "sum": (torch.sum, (X,), {"bi_compile.sum"}),
    "sum over a middle dim": (lambda x: x.sum(1, keepdim=True), (X,), {"bi_compile.sum"}),
    "sum over two dims": (lambda x: x.sum((0, 2)), (X,), {"bi_compile.sum"}),
    "sum in another dtype": (lambda x: x.sum(-1, dtype=torch.float64), (X,), {"bi_compile.sum"}),
    "sum of integers as floats": (lambda x: x.long().sum(-1, dtype=torch.float32), (X,), {"bi_compile.sum"}),
    "mean": (torch.mean, (X,), {"bi_compile.mean"}),
    "mean over a dim": (lambda x: x.mean(-1), (X,), {"bi_compile.mean"}),
    "prod": (lambda x: x.prod(-1), (X,), {"bi_compile.prod"}),
    "prod of all": (torch.prod, (X[0, :1],), {"bi_compile.prod"}),
    "amax": (lambda x: x.amax((0, 1)), (X,), {"bi_compile.amax"}),
    "amin": (lambda x: x.amin(-1), (X,), {"bi_compile.amin"}),
    "max": (torch.max, (X,), {"bi_compile.amax"}),
    "min": (torch.min, (X,), {"bi_compile.amin"}),
    "max over a dim": (lambda x: tuple(x.max(-1)), (X,), {"bi_compile.amax", "bi_compile.argmax"}),
    "min over a dim": (lambda x: tuple(x.min(1)), (X,), {"bi_compile.amin", "bi_compile.argmin"}),
    "aminmax": (lambda x: tuple(torch.aminmax(x, dim=-1)), (X,), {"bi_compile.amin", "bi_compile.amax"}),
    "argmax": (lambda x: x.argmax(), (X,), {"bi_compile.argmax"}),
    "argmin": (lambda x: x.argmin(-1, keepdim=True), (X,), {"bi_compile.argmin"}),
    "var": (lambda x: x.var(-1), (X,), {"bi_compile.var"}),
    "var of everything, uncorrected": (lambda x: x.var(unbiased=False), (X,), {"bi_compile.var"}),
    "std": (lambda x: x.std((1, 2), correction=2), (X,), {"bi_compile.var"}),
    "var_mean": (lambda x: torch.var_mean(x, -1), (X,), {"bi_compile.var_mean"}),
    "std_mean": (lambda x: torch.std_mean(x, -1), (X,), {"bi_compile.var_mean"}),
    "norm": (lambda x: x.norm(), (X,), {"bi_compile.norm"}),
    "norm of order 1": (lambda x: x.norm(1, dim=-1), (X,), {"bi_compile.norm"}),
    "vector_norm of order 3": (lambda x: torch.linalg.vector_norm(x, 3, -1), (X,), {"bi_compile.norm"}),
    "normalize": (lambda x: F.normalize(x, dim=-1), (X,), {"bi_compile.norm"}),
    "logsumexp": (lambda x: x.logsumexp((1, 2)), (X,), {"bi_compile.logsumexp"}),
    "cosine_similarity": (lambda x: F.cosine_similarity(x, x.flip(0), -1), (X,), {"bi_compile.sum"}),
}
LEFT_ALONE = {
    "sum of integers": (torch.sum, (X.long(),)),
    "sum of booleans": (lambda x: (x > 0).sum(-1), (X,)),
    "sum of floats as integers": (lambda x: x.sum(-1, dtype=torch.int64) + x.sum(dtype=torch.int64), (X,)),
    "max of integers": (lambda x: tuple(x.max(-1)), (X.long(),)),
    "any and all": (lambda x: ((x > 0).any(-1), (x > 0).all()), (X,)),
    "count_nonzero": (lambda x: x.count_nonzero(-1), (X,)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])
