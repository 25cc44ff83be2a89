"""Quantiles taken apart as PyTorch does it, for the versions whose graphs cannot hold its own."""

import pytest
import torch

import bi_compile
from bi_compile.passes.quantile import quantile
from tests.bits import assert_same_bits

X = torch.randn(3, 5, 8)
HOLES = torch.where(X > 1, torch.nan, X)
HOLES[1, 2] = torch.nan
SEVERAL = torch.tensor([0.0, 0.1, 0.37, 1.0])
INTERPOLATIONS = "lower", "higher", "nearest", "midpoint"
CALLS = {
    "a dim": lambda f, x: f(x, 0.37, 1),
    "the last, kept": lambda f, x: f(x, 0.5, -1, keepdim=True),
    "the first, kept": lambda f, x: f(x, 0.5, 0, keepdim=True),
    "all": lambda f, x: f(x, 0.37),
    "all, kept": lambda f, x: f(x, 0.37, keepdim=True),
    "several": lambda f, x: f(x, SEVERAL.to(x.dtype), 1),
    "several, kept": lambda f, x: f(x, SEVERAL.to(x.dtype), -2, keepdim=True),
    "several of all": lambda f, x: f(x, SEVERAL.to(x.dtype), keepdim=True),
    "a tensor of one": lambda f, x: f(x, x.new_tensor(0.2), 2),
    "of a number": lambda f, x: f(x[0, 0, 0], 0.2, 0, keepdim=True),
    **{how: lambda f, x, how=how: f(x, SEVERAL.to(x.dtype), 1, interpolation=how) for how in INTERPOLATIONS},
}


@pytest.mark.skipif(
    torch.__version__ >= (2, 14),
    reason="PyTorch rounds weights otherwise from 2.14 on; ours serve before 2.12",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("x", [X, HOLES], ids=["finite", "with NaN"])
@pytest.mark.parametrize("ignore_nan", [False, True], ids=["quantile", "nanquantile"])
@pytest.mark.parametrize("name", CALLS)
def test_the_bits_and_gradients_are_those_of_pytorch(name, x, ignore_nan, dtype):
    def run(f):
        leaf = x.to(dtype).requires_grad_()
        out = CALLS[name](f, leaf)
        return out, *torch.autograd.grad(out.nansum(), leaf)

    stock = torch.nanquantile if ignore_nan else torch.quantile
    with bi_compile.eager():
        got, want = run(lambda *a, **k: quantile(*a, ignore_nan=ignore_nan, **k)), run(stock)
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert_same_bits(one, other)


OVER_THE_BATCH = "the first, kept", "all", "all, kept", "several of all", "of a number"


@pytest.mark.parametrize("name", [name for name in CALLS if name not in OVER_THE_BATCH])
def test_graphs_of_any_batch_hold_it(name):
    torch.compiler.reset()
    x = torch.where(torch.rand(7, 5, 8) < 0.1, torch.nan, torch.randn(7, 5, 8))

    def run(x):
        return CALLS[name](torch.quantile, x), CALLS[name](torch.Tensor.nanquantile, x)

    with bi_compile.eager():
        want = run(x)
    compiled = torch.compile(run, backend="batch_invariant", fullgraph=True)
    batch = 1 if name.startswith("several") or name in INTERPOLATIONS else 0
    for rows in (slice(0, 7), slice(2, 5), slice(6, 7)):
        for got, whole in zip(compiled(x[rows]), want, strict=True):
            assert_same_bits(got, whole.movedim(batch, 0)[rows].movedim(0, batch))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(X, 1.2, 1), "range"),
        (lambda f: f(X, 0.3, 1, interpolation="cubic"), "interpolation"),
        (lambda f: f(X.long(), 0.3, 1), "dtype"),
        (lambda f: f(X, torch.ones(2, 2), 1), "1D"),
        (lambda f: f(X, torch.ones(2).double(), 1), "dtype"),
    ],
)
def test_what_pytorch_refuses_is_refused(call, message):
    for f in (quantile, torch.quantile):
        with pytest.raises(RuntimeError, match=message):
            call(f)
