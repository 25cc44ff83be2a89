"""nn.MultiheadAttention: padding is not there, whether weights are asked for or not, whatever lies in it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from bi_compile.errors import UnsupportedOpError
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits, same_bits

SIZE, HEADS, LENGTHS = 24, 3, (330, 300, 7, 301)
"""More keys than a chunk of a product by hand, and than a block of attention."""
ADDED = {"plain": {}, "bias_k": {"add_bias_kv": True}, "zero": {"add_zero_attn": True}}
ADDED["both"] = ADDED["bias_k"] | ADDED["zero"]


def module(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    made = nn.MultiheadAttention(SIZE, HEADS, batch_first=True, **settings)
    return made.eval().requires_grad_(False).to(dtype)


def sequences(dtype=torch.float32, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, SIZE, generator=generator).to(dtype) for length in lengths]


def padded(parts, side, fill):
    """[B, longest, E] and its mask, True where there is padding, and where each part lies."""
    longest = max(map(len, parts))
    slots = [slice(longest - len(p), None) if side == "left" else slice(0, len(p)) for p in parts]
    x = parts[0].new_full((len(parts), longest, SIZE), fill)
    mask = torch.ones(len(parts), longest, dtype=torch.bool)
    for i, (part, slot) in enumerate(zip(parts, slots, strict=True)):
        x[i, slot], mask[i, slot] = part, False
    return x, mask, slots


def unlike_alone(mha, parts, side, fill, *, number_mask=False):
    """Which sequences get another output or other weights in the batch than alone."""
    x, mask, slots = padded(parts, side, fill)
    hidden = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(mask, -math.inf) if number_mask else mask
    out, weights = mha(x, x, x, key_padding_mask=hidden)
    added = weights.shape[2] - x.shape[1]
    unlike = []
    for i, (part, slot) in enumerate(zip(parts, slots, strict=True)):
        alone, own = mha(*[part.unsqueeze(0)] * 3)
        row = weights[i, slot]
        found = torch.cat([row[:, : x.shape[1]][:, slot], row[:, x.shape[1] :]], 1)
        assert own.shape[2] == len(part) + added
        if not (same_bits(out[i, slot], alone[0]) and same_bits(found, own[0])):
            unlike.append(i)
        if row[:, : x.shape[1]][:, mask[i]].any():
            unlike.append(-i)
    return unlike


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("added", ADDED)
@torch.no_grad()
def test_padding_changes_no_output_and_no_weight(added, dtype):
    mha = module(dtype, **ADDED[added])
    parts = sequences(dtype)
    with bi_compile.eager():
        for side in ("left", "right"):
            assert not unlike_alone(mha, parts, side, math.nan)
        assert not unlike_alone(mha, parts, "left", math.inf, number_mask=True)
    assert unlike_alone(mha, parts, "left", math.nan), "the control: stock PyTorch"


@pytest.mark.parametrize("added", ADDED)
@torch.no_grad()
def test_output_and_weights_are_those_of_float64(added):
    mha, wide = module(**ADDED[added]), module(torch.float64, **ADDED[added])
    x, mask, _ = padded(sequences(lengths=(40, 33, 7)), "right", 0.0)
    causal = nn.Transformer.generate_square_subsequent_mask(40)
    for options in ({}, {"average_attn_weights": False}, {"attn_mask": causal, "is_causal": True}):
        with bi_compile.eager():
            found = mha(x, x, x, key_padding_mask=mask.float() * -1e4, **options)
            unasked = mha(x, x, x, key_padding_mask=mask.float() * -1e4, need_weights=False, **options)
        double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        wanted = wide(*[x.double()] * 3, key_padding_mask=mask.double() * -1e4, **double)
        assert_same_bits(unasked[0], found[0])
        assert unasked[1] is None
        for ours, exact in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=2e-6)


@torch.no_grad()
def test_causality_by_hint_and_by_mask():
    mha, (x, *_) = module(), sequences(lengths=(40,))
    causal = nn.Transformer.generate_square_subsequent_mask(40)
    with bi_compile.eager():
        hinted, weights = mha(x, x, x, attn_mask=causal, is_causal=True)
        assert_same_bits(hinted, mha(x, x, x, attn_mask=causal)[0])
        assert_same_bits(hinted, mha(x, x, x, attn_mask=causal, is_causal=True, need_weights=False)[0])
        short, few = mha(*[x[:17]] * 3, attn_mask=causal[:17, :17])
        assert_same_bits(hinted[:17], short, "rung Q")
        assert_same_bits(weights[:17, :17], few)
    assert not weights.triu(1).any()


@torch.no_grad()
def test_rows_without_keys_are_zero_and_rows_of_the_lowest_number_an_average():
    mha, (x, *_) = module(), sequences(lengths=(5,))
    lowest = torch.finfo(x.dtype).min
    with bi_compile.eager():
        out, weights = mha(x, x, x, key_padding_mask=torch.ones(5, dtype=torch.bool))
        _, average = mha(x, x, x, key_padding_mask=torch.full((5,), lowest))
    assert not weights.any()
    assert_same_bits(out, mha.out_proj.bias.expand(5, -1).contiguous())
    torch.testing.assert_close(average, torch.full((5, 5), 0.2))


def function(mha, x, mask, **options):
    return mha(x, x, x, key_padding_mask=mask, **options)


@torch.no_grad()
def test_compiled_is_eager_and_unused_weights_are_not_computed():
    torch.compiler.reset()
    mha = module(add_bias_kv=True)
    x, mask, _ = padded(sequences(lengths=(40, 33, 7, 39, 40)), "left", 0.0)
    both = torch.compile(lambda x, mask: function(mha, x, mask), backend="batch_invariant", fullgraph=True)
    assert_batch_invariant(both, x, mask, trials=1, sizes=(1, 2, 7))
    with bi_compile.eager():
        wanted = function(mha, x, mask)
    for found, want in zip(both(x, mask), wanted, strict=True):
        assert_same_bits(found, want)
    unused, unasked = (
        bi_compile.explain(fn)(x, mask).canonical
        for fn in (
            lambda x, mask: function(mha, x, mask)[0],
            lambda x, mask: function(mha, x, mask, need_weights=False)[0],
        )
    )
    assert unused == unasked
    assert unused["bi_compile.attention"] == 1


def test_gradients_of_output_and_weights():
    mha, wide = module(add_bias_kv=True), module(torch.float64, add_bias_kv=True)
    x, mask, _ = padded(sequences(lengths=(20, 9)), "left", 0.0)

    def gradient(mha, x):
        leaf = x.clone().requires_grad_()
        out, weights = function(mha, leaf, mask)
        return torch.autograd.grad(out.square().sum() + weights.square().sum(), leaf)[0]

    with bi_compile.eager():
        found = gradient(mha, x)
    torch.testing.assert_close(found.double(), gradient(wide, x.double()), rtol=1e-4, atol=1e-5)


def test_dropout_of_the_weights_is_refused():
    mha, (x, *_) = module(dropout=0.1).train(), sequences(lengths=(5,))
    with bi_compile.eager(), pytest.raises(UnsupportedOpError, match="bernoulli"):
        mha(x, x, x)


@torch.no_grad()
def test_autocast_narrows_what_is_put_behind_the_keys():
    mha, (x, *_) = module(add_bias_kv=True, add_zero_attn=True), sequences(lengths=(9,))
    with bi_compile.eager(), torch.autocast("cpu", torch.bfloat16):
        out, weights = mha(x, x, x, key_padding_mask=torch.zeros(9))
    assert out.dtype == weights.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), mha(x, x, x)[0], rtol=2e-2, atol=2e-2)


def test_the_signature_is_that_of_stock():
    """Positional arguments, and keys and values of other sizes than the queries."""
    mha = nn.MultiheadAttention(SIZE, HEADS, kdim=10, vdim=14).eval()
    q, k, v = torch.randn(4, 2, SIZE), torch.randn(6, 2, 10), torch.randn(6, 2, 14)
    with torch.no_grad(), bi_compile.eager():
        out, weights = mha(q, k, v, None, True)
    torch.testing.assert_close((out, weights), mha(q, k, v, None, True))
    assert F.multi_head_attention_forward.__name__ == "multi_head_attention_forward"
