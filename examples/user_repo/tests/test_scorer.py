import torch
from scorer import build

from bi_compile.testing import assert_batch_invariant


def test_scorer_is_batch_invariant():
    model = build()
    compiled = torch.compile(model, backend="batch_invariant")
    assert_batch_invariant(compiled, torch.randn(8, 301), control=model, reference=model)
