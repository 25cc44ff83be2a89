"""instance_norm, encoders and softshrink are opened up, with whole ops inside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from bi_compile.report import collect
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits
from tests.passes.tables import op_names, traced

X = torch.randn(5, 6, 12)

_norm = nn.InstanceNorm1d(6, affine=True).eval().requires_grad_(False)
REWRITTEN = {
    "instance norm": (_norm, "bi_compile.layer_norm"),
}
LEFT_ALONE = {
    "instance norm by running statistics": (
        lambda x: F.instance_norm(x, x[0, :, 0], x[0, :, 1] ** 2, use_input_stats=False),
        (X,),
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_is_rewritten(name, dtype):
    torch.compiler.reset()
    fn, op = REWRITTEN[name]
    _norm.to(dtype)
    x = X.to(dtype)
    with collect() as report:
        compiled = torch.compile(fn, backend="batch_invariant")
        assert_batch_invariant(compiled, x, trials=1, sizes=(1, 2, 7))
    assert report.canonical[op]
    with bi_compile.eager():
        want = fn(x)
    assert_same_bits(compiled(x), want)
    torch.testing.assert_close(want, fn(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    fn, inputs = LEFT_ALONE[name]
    assert not any(op.startswith("bi_compile") for op in op_names(traced(fn, *inputs)))


@torch.no_grad()
def test_an_encoder_of_pytorch_in_any_batch():
    torch.compiler.reset()
    model = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True).eval()
    assert_batch_invariant(torch.compile(model, backend="batch_invariant"), X, trials=1, reference=model)


def test_instance_norm_that_learns_is_refused():
    with pytest.raises(bi_compile.BatchInvariantError, match="batch_norm"), bi_compile.eager():
        nn.InstanceNorm1d(6, track_running_stats=True).train()(X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_softshrink_are_those_of_stock(dtype):
    torch.compiler.reset()
    x = X.to(dtype).requires_grad_()
    compiled = torch.compile(lambda x: F.softshrink(x, 0.5), backend="batch_invariant", fullgraph=True)
    weight = torch.randn_like(x)
    (ours,) = torch.autograd.grad(compiled(x), x, weight)
    (stock,) = torch.autograd.grad(F.softshrink(x, 0.5), x, weight)
    assert_same_bits(ours + 0.0, stock + 0.0)
