"""The fused attention ops of PyTorch, where they are called by name: the canonical attention."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from tests.bits import assert_same_bits

FUSED = {
    "_scaled_dot_product_flash_attention_for_cpu": ((), 2),
    "_scaled_dot_product_flash_attention": ((), 9),
    "_scaled_dot_product_cudnn_attention": ((None, True), 9),
    "_scaled_dot_product_efficient_attention": ((None, True), 4),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_ops_are_the_canonical_attention(name, dtype):
    """As they stand in a graph that somebody traced, and on the other device's side in eager mode."""
    torch.compiler.reset()
    more, count = FUSED[name]
    op = getattr(torch.ops.aten, name).default
    q, k, v = torch.randn(5, 4, 70, 16), *torch.randn(2, 5, 2, 70, 16)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    with bi_compile.eager():
        want = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        found = op(q, k, v, *more)
    assert len(found) == count
    assert_same_bits(found[0], want)
    scores = (q.double() @ k.double().repeat_interleave(2, 1).mT) / 4
    torch.testing.assert_close(found[1].double(), scores.logsumexp(-1), rtol=1e-3, atol=1e-3)
    compiled = torch.compile(lambda q, k, v: op(q, k, v, *more)[:2], backend="batch_invariant")
    if name.endswith("_for_cpu"):  # the others have no CPU side that a graph could be traced by
        for i in (slice(None), slice(2, 3)):
            for got, whole in zip(compiled(q[i], k[i], v[i]), found, strict=False):
                assert_same_bits(got, whole[i])
