"""The arithmetic of attention's kernels on its own."""

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted.interpreter import tl

triton = pytest.importorskip("triton")

from bi_compile.templates.attention.gpu_arithmetic import ratio  # noqa: E402


@triton.jit
def _ratio(found, t, SIZE: tl.constexpr):
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(found + at, ratio(tl.load(t + at)))


def test_the_quotient_in_tanh_is_rounded_once():
    t = torch.exp(torch.linspace(-90, -1, 2**18, dtype=torch.float64)).to(torch.float32)
    found = torch.empty_like(t)
    _ratio[(2**6,)](found, t, SIZE=2**12)
    assert_same_bits(found, (1 - t) / (1 + t), "quotient")
