"""layer, rms, group and evaluated batch norm become row trees or pointwise ops."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from tests.bits import assert_same_bits
from tests.passes.tables import check_left_alone, check_rewritten, traced

X = torch.randn(3, 5, 7) * 2
W = torch.rand(7) + 0.5


def weight_norm(x, dim):
    """Weights and the gradients of their direction and length."""
    over = [i for i in range(x.dim()) if i != dim]
    with torch.enable_grad():
        v = x.detach().requires_grad_()
        g = (x.detach().square().sum(over, keepdim=True) + 1).requires_grad_()
        out = torch._weight_norm(v, g, dim)
        return out, *torch.autograd.grad(out.square().sum() / 64, (v, g))


REWRITTEN = {
    "layer_norm": (lambda x, w: F.layer_norm(x, (7,), w, w), (X, W), {"bi_compile.layer_norm"}),
    "layer_norm over two dims": (lambda x: F.layer_norm(x, (5, 7)), (X,), {"bi_compile.layer_norm"}),
    "group_norm": (lambda x: F.group_norm(x.permute(0, 2, 1)[:, :6], 3), (X,), {"bi_compile.layer_norm"}),
    "group_norm with weights": (
        lambda x, w: F.group_norm(x.permute(0, 2, 1), 7, w, w),
        (X, W),
        {"bi_compile.layer_norm"},
    ),
    # Taken apart on the way to a graph, whole in eager mode: the same bits, as fusion is not observable.
    "rms_norm": (lambda x, w: F.rms_norm(x, (7,), w, 1e-6), (X, W), {"bi_compile.mean"}),
    "rms_norm by hand": (
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w,
        (X, W),
        {"bi_compile.mean"},
    ),
    "batch_norm in evaluation": (
        lambda x, w: F.batch_norm(x.permute(0, 2, 1), w, w.abs(), w, w, eps=1e-3),
        (X, W),
        set(),
    ),
    "weight_norm": (lambda x: weight_norm(x, 0), (X,), {"bi_compile.sum"}),
    "weight_norm, last dim": (lambda x: weight_norm(x, 2), (X,), {"bi_compile.sum"}),
    "weight_norm of everything": (lambda x: weight_norm(x, -1), (X,), {"bi_compile.sum"}),
    "gradient of layer_norm": (
        lambda x, w: torch.ops.aten.native_layer_norm_backward(
            x, x, [7], x.mean(-1, keepdim=True), x.mean(-1, keepdim=True), w, w, [True, True, True]
        ),
        (X, W),
        {"bi_compile.sum"},
    ),
}
LEFT_ALONE = {
    "an affine map": (lambda x, w: x + w, (X, W)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rms_norm_taken_apart_rounds_as_the_whole(dtype):
    x, w = X.to(dtype), W.to(dtype)
    graph = traced(lambda x, w: F.rms_norm(x, (7,), w, 1e-6), x, w)
    with bi_compile.eager():
        assert_same_bits(F.rms_norm(x, (7,), w, 1e-6), graph(x, w))
