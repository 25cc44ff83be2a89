"""What failures look like: every test of this file fails, on purpose. `pytest` alone does not collect it."""

import torch
from scorer import Mixing, build

from bi_compile.testing import assert_batch_invariant, bisect

INPUTS = torch.randn(8, 301, generator=torch.Generator().manual_seed(0))


def test_stock_pytorch_is_taken_for_invariant():
    assert_batch_invariant(build(), INPUTS)


def test_stock_pytorch_names_its_op():
    first = bisect(build(), INPUTS)
    assert first is None, str(first)


def test_a_model_that_mixes_its_batch():
    assert_batch_invariant(torch.compile(build(Mixing), backend="batch_invariant"), INPUTS)
