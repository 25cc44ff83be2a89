"""`bi_compile.eager()`: in-place calls and calls with a destination have the bits of plain ones."""

import pytest
import torch

import bi_compile
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
    "matmul": (lambda: torch.matmul(X, Y.mT, out=torch.empty(0)), lambda: X @ Y.mT),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_destination_changes_no_bit(name):
    into, plain = CALLS[name]
    with bi_compile.eager():
        got, want = into(), plain()
    assert_same_bits(got, want)
    torch.testing.assert_close(got, plain())
