"""Gradients of attention: garbage that a mask hides is in none of them."""

import math

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.templates.attention import scaled_dot_product_attention
from tests.bits import assert_same_bits

KEYS, SEEN = 9, 6
LOWEST = torch.finfo(torch.float32).min


def boolean(queries):
    visible = torch.ones(queries, KEYS, dtype=torch.bool)
    visible[:, SEEN:] = False
    return visible


MASKS = {
    "boolean": boolean,
    "-inf": lambda n: torch.zeros(n, KEYS).masked_fill(~boolean(n), -math.inf),
    "lowest": lambda n: torch.zeros(n, KEYS).masked_fill(~boolean(n), LOWEST),
}
QUERY = torch.randn(2, 4, SEEN, 16, generator=torch.Generator().manual_seed(0))
KEY, VALUE = torch.randn(2, 2, 2, KEYS, 16, generator=torch.Generator().manual_seed(1))
GRADIENT = torch.randn(2, 4, SEEN, 16, generator=torch.Generator().manual_seed(2))


def gradients(query, key, value, dtype, **options):
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in (query, key, value)]
    with bi_compile.eager():
        out = scaled_dot_product_attention(*leaves, enable_gqa=True, **options)
        out.backward(GRADIENT.to(dtype))
    return [x.grad for x in leaves]


def hidden(x, value):
    x = x.clone()
    x[:, :, SEEN:] = value
    return x


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [*MASKS, "causal"])
def test_garbage_in_hidden_keys_and_values(kind, dtype, softcap):
    mask = {"is_causal": True} if kind == "causal" else {"attn_mask": MASKS[kind](SEEN)}
    options = {"softcap": softcap, **mask}
    want = gradients(QUERY, hidden(KEY, 0), hidden(VALUE, 0), dtype, **options)
    for garbage in (math.nan, math.inf, -math.inf, 3e38):
        got = gradients(QUERY, hidden(KEY, garbage), hidden(VALUE, garbage), dtype, **options)
        for ours, without in zip(got, want, strict=True):
            assert_same_bits(ours, without)
    # The control, and what PyTorch gives: a weight of zero times NaN.
    q = QUERY.clone().requires_grad_()
    scores = (q @ hidden(KEY, math.nan).repeat_interleave(2, 1).mT).masked_fill(~boolean(SEEN), -math.inf)
    (scores.softmax(-1) @ hidden(VALUE, 0).repeat_interleave(2, 1)).sum().backward()
    assert q.grad is not None
    assert q.grad.isnan().all()


def test_garbage_in_queries_that_see_nothing():
    """Queries of padding: no key may take anything from them."""
    mask = torch.ones(SEEN, KEYS, dtype=torch.bool)
    mask[:2] = False
    padded = QUERY.clone()
    padded[:, :, :2] = math.nan
    want = gradients(QUERY, KEY, VALUE, torch.float32, attn_mask=mask)
    got = gradients(padded, KEY, VALUE, torch.float32, attn_mask=mask)
    for ours, without in zip(got, want, strict=True):
        assert_same_bits(ours, without)


def test_what_is_seen_is_not_hidden():
    """NaN and infinity that a query sees are in its gradient, as are infinite gradients of the output."""
    key = KEY.clone()
    key[0, 0, 3] = math.nan
    query, keys, _ = gradients(QUERY, key, VALUE, torch.float32, attn_mask=boolean(SEEN))
    assert query[0, :2].isnan().all()
    assert keys[0, 0, :SEEN].isnan().all()
    assert query[0, 2:].isfinite().all()
    query, _, values = gradients(QUERY, KEY, hidden(VALUE, 0) * math.inf, torch.float32)
    assert query.isnan().all()
    assert values.isfinite().all()


@pytest.mark.parametrize("kind", [*MASKS, "causal"])
def test_close_to_float64(kind):
    mask = {"is_causal": True} if kind == "causal" else {"attn_mask": MASKS[kind](SEEN)}
    got = gradients(QUERY, KEY, VALUE, torch.float32, **mask)
    wide = [x.double().requires_grad_() for x in (QUERY, KEY, VALUE)]
    if (given := mask.get("attn_mask")) is not None and given.dtype != torch.bool:
        mask = {"attn_mask": given.double()}
    F.scaled_dot_product_attention(*wide, enable_gqa=True, **mask).backward(GRADIENT.double())
    for ours, exact in zip(got, wide, strict=True):
        assert exact.grad is not None
        torch.testing.assert_close(ours.double(), exact.grad, rtol=1e-5, atol=1e-5)
