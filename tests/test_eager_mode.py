"""`bi_compile.eager()`: in-place calls and calls with a destination have the bits of plain ones."""

import pytest
import torch

import bi_compile
from bi_compile.errors import LeakWarning, UnsupportedOpError
from tests.bits import assert_same_bits

X = torch.randn(5, 301, generator=torch.Generator().manual_seed(0))
Y = torch.randn(5, 301, generator=torch.Generator().manual_seed(1))
CALLS = {
    "pow_ of a number": (lambda: X.abs().pow_(1.7), lambda: X.abs().pow(1.7)),
    "ldexp_": (lambda: X.clone().ldexp_(Y), lambda: X.ldexp(Y)),
    "float_power_": (lambda: X.abs().double().float_power_(1.7), lambda: X.abs().float_power(1.7)),
    "add": (lambda: torch.add(X, Y, alpha=0.3, out=torch.empty(0)), lambda: torch.add(X, Y, alpha=0.3)),
    "sub": (lambda: torch.sub(X, Y, out=torch.empty(0)), lambda: X - Y),
    "mul": (lambda: torch.mul(X, Y, out=torch.empty(0)), lambda: X * Y),
    "div": (lambda: torch.div(X, Y, out=torch.empty(0)), lambda: X / Y),
    "copysign": (lambda: torch.copysign(X, Y, out=torch.empty(0)), lambda: X.copysign(Y)),
    "max of two": (lambda: torch.max(X, Y, out=torch.empty(0)), lambda: torch.maximum(X, Y)),
    "min of two": (lambda: torch.min(X, Y, out=torch.empty(0)), lambda: torch.minimum(X, Y)),
    "mean": (lambda: torch.mean(X, 1, out=torch.empty(0)), lambda: X.mean(1)),
    "std": (lambda: torch.std(X, 1, out=torch.empty(0)), lambda: X.std(1)),
    "var": (lambda: torch.var(X, 1, out=torch.empty(0)), lambda: X.var(1)),
    "any": (lambda: torch.any(X > 3, 1, out=torch.empty(0, dtype=torch.bool)), lambda: (X > 3).any(1)),
    "resize_as_": (lambda: torch.empty(0).resize_as_(X).copy_(Y), lambda: Y.clone()),
    "matmul": (lambda: torch.matmul(X, Y.mT, out=torch.empty(0)), lambda: X @ Y.mT),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_destination_changes_no_bit(name):
    into, plain = CALLS[name]
    with bi_compile.eager():
        got, want = into(), plain()
    assert_same_bits(got, want)
    torch.testing.assert_close(got, plain())


def test_a_module_that_resizes_its_result():
    """CrossMapLRN2d, a Python function with a gradient of its own."""
    x, norm = torch.randn(3, 7, 5, 5), torch.nn.CrossMapLRN2d(3)
    with bi_compile.eager():
        got, alone = norm(x), norm(x[:1])
    assert_same_bits(got[:1], alone)
    torch.testing.assert_close(got, norm(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_scale_of_the_whole_batch_is_named_as_the_reason():
    linear = torch.nn.Sequential(torch.nn.Linear(301, 7))
    quantised = torch.ao.quantization.quantize_dynamic(linear, {torch.nn.Linear})
    assert not torch.equal(quantised(torch.cat([X, X * 9]))[:5], quantised(X))
    with bi_compile.eager(), pytest.raises(UnsupportedOpError, match="the largest value of the whole batch"):
        quantised(X)
    torch.compiler.reset()
    with pytest.warns(LeakWarning, match="runs as stock PyTorch: it quantises its input by one scale"):
        torch.compile(quantised, backend="batch_invariant")(X)
    torch.compiler.reset()
    with pytest.raises(Exception, match="Failed to convert args/kwargs to proxy"):  # by Dynamo itself
        torch.compile(quantised, backend="batch_invariant", fullgraph=True)(X)
