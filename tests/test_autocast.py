"""Autocast regions: products in the narrow type and the rest in fp32, with the bits of eager mode."""

import pytest
import torch
from torch import nn

import bi_compile
from bi_compile.report import collect
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits
from tests.models import Block, block_inputs

X, MASK = block_inputs(16)


class Mixed(nn.Module):
    """A block under autocast between layers that are not, and a region in which it is switched off again."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.before, self.block, self.wide = nn.Linear(24, 24), Block(), nn.Linear(300, 10)
        self.conv = nn.Conv1d(7, 30, 3, padding=1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        with torch.autocast("cpu", dtype=self.dtype):
            out = self.block(x, mask)
            features = self.conv(x).flatten(1)[:, :300]
            with torch.autocast("cpu", enabled=False):
                exact = self.wide(features.to(x.dtype))
        return out + exact


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_region_inside_the_model(dtype):
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Mixed(dtype).eval()
    with bi_compile.eager():
        want = model(X, MASK)
    compiled = torch.compile(model, backend="batch_invariant")
    with collect() as report:
        assert_same_bits(compiled(X, MASK), want)
    assert not report.refused
    assert_batch_invariant(compiled, X, MASK, sizes=(1, 3, 8), trials=1)
    # Its products are narrow: the same model without the region has other bits.
    wide = Mixed(torch.float32).eval()
    wide.load_state_dict(model.state_dict())
    assert not torch.equal(torch.compile(wide, backend="batch_invariant")(X, MASK), want)
    exact = wide.double()(X.double(), MASK)
    errors = [(out.double() - exact).square().mean().sqrt() for out in (want, model(X, MASK))]
    assert errors[0] <= 1.5 * errors[1], "further from float64 than stock autocast is"


@torch.no_grad()
def test_a_region_around_the_call():
    torch.compiler.reset()
    torch.manual_seed(0)
    model = Block().eval()
    compiled = torch.compile(model, backend="batch_invariant")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with bi_compile.eager():
            want = model(X, MASK)
        for part in (slice(0, 16), slice(3, 5), slice(7, 8)):
            assert_same_bits(compiled(X[part], MASK[part]), want[part])
    with bi_compile.eager():
        assert not torch.equal(model(X, MASK), want.to(torch.float32))
