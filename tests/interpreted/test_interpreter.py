"""What the interpreter of these tests adds to Triton's."""

import pytest
import torch

from tests.interpreted.interpreter import tl

triton = pytest.importorskip("triton")


@triton.jit
def _squared(out, n):
    tl.store(out, n * n)


def test_an_integer_that_overflows_stops_a_kernel():
    """Such as an offset in a large tensor. Triton's own check stays silent, and the number wraps around."""
    out = torch.zeros(1, dtype=torch.int32)
    _squared[(1,)](out, 46340)
    assert out.item() == 46340**2
    with pytest.raises(Exception, match="int32 overflows in mul"):
        _squared[(1,)](out, 46341)
