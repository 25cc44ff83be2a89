"""softmax and log_softmax become one row tree, their gradients sums of the same tree."""

import pytest
import torch
import torch.nn.functional as F

from tests.passes.tables import check_left_alone, check_rewritten

X = torch.randn(3, 5, 7) * 2
T = torch.tensor([0, 6, 2, 2, 1])

REWRITTEN = {
    "softmax": (lambda x: x.softmax(-1), (X,), {"bi_compile.softmax"}),
    "softmax over a middle dim": (lambda x: x.softmax(1), (X,), {"bi_compile.softmax"}),
    "softmax in another dtype": (
        lambda x: x.softmax(-1, dtype=torch.float64),
        (X,),
        {"bi_compile.softmax"},
    ),
    "log_softmax": (lambda x: x.log_softmax(-1), (X,), {"bi_compile.log_softmax"}),
    "safe softmax": (lambda x: torch._safe_softmax(x, -1), (X,), {"bi_compile.softmax"}),
    "cross entropy": (
        lambda x, t: F.cross_entropy(x[0], t, reduction="none"),
        (X, T),
        {"bi_compile.log_softmax"},
    ),
    "gradient of softmax": (
        lambda g, y: torch.ops.aten._softmax_backward_data(g, y, -1, g.dtype),
        (X, X.softmax(-1)),
        {"bi_compile.sum"},
    ),
    "gradient of log_softmax": (
        lambda g, y: torch.ops.aten._log_softmax_backward_data(g, y, -1, g.dtype),
        (X, X.log_softmax(-1)),
        {"bi_compile.sum"},
    ),
}
LEFT_ALONE = {
    "hard choice": (lambda x: F.one_hot((x[:, 0, 0] > 0).long(), 2), (X,)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])
