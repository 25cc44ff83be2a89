"""The arithmetic of attention's kernels on its own."""

import pytest
import torch

from bi_compile.templates.attention import oracle
from bi_compile.templates.attention.oracle import fma
from tests.bits import assert_same_bits
from tests.interpreted.chain import chain
from tests.interpreted.interpreter import tl

triton = pytest.importorskip("triton")

from bi_compile.templates.attention.gpu_arithmetic import exp, ratio, tanh  # noqa: E402


@triton.jit
def _exp(found, x, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(found + at, exp(tl.load(x + at)))


@triton.jit
def _tanh(found, x, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(found + at, tanh(tl.load(x + at)))


@triton.jit
def _ratio(found, t, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(found + at, ratio(tl.load(t + at)))


def test_the_quotient_in_tanh_is_rounded_once():
    t = torch.exp(torch.linspace(-90, -1, 2**18, dtype=torch.float64)).to(torch.float32)
    found = torch.empty_like(t)
    _ratio[(2**6,)](found, t, SIZE=2**12)
    assert_same_bits(found, (1 - t) / (1 + t), "quotient")


def test_products_are_chains_of_fused_multiply_adds():
    """Down to numbers below the normal ones; rounded twice, some differ."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 40, generator=g), torch.randn(40, 9, generator=g)
    start = torch.randn(3, 9, generator=g)
    start[0, 0], start[1, 1] = torch.inf, torch.nan
    for scale in (1.0, 2.0**-62):
        left, right, total = a * scale, b * scale, start * scale**2
        found = chain(left, right.t().contiguous().t(), total, "fp32", "ieee")
        expected = twice = total
        for k in range(40):
            x, y = left[:, k, None], right[None, k]
            expected, twice = fma(x, y, expected), x * y + twice
        assert_same_bits(found, expected, f"times {scale}")
        assert not torch.equal(found.nan_to_num(), twice.nan_to_num())


@pytest.mark.parametrize(
    ("kernel", "expected", "least", "most"),
    [(_exp, oracle.exp, -90.0, 0.0), (_tanh, oracle.tanh, -11.0, 11.0)],
    ids=["exp", "tanh"],
)
def test_functions_are_those_of_the_oracle_operation_for_operation(kernel, expected, least, most):
    """On many numbers: few of those that a test of attention meets show a step that is rounded twice."""
    x = torch.cat([torch.linspace(least, most, 2**16 - 2**14), torch.linspace(-0.6, 0.0, 2**14)])
    found = torch.empty_like(x)
    kernel[(2**4,)](found, x, SIZE=2**12)
    assert_same_bits(found, expected(x), "function")
