"""Attention: one row's bits whatever the batch, the padding, the other queries, the layout."""

# pyright: reportArgumentType=false, reportCallIssue=false

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from bi_compile.templates.attention import attention, oracle, scaled_dot_product_attention
from tests.bits import as_integers, assert_same_bits, same_bits
from tests.templates.attention_problems import (
    DTYPES,
    EACH_DTYPE,
    INF,
    LAYOUTS,
    LOW,
    MASKS,
    NAN,
    SHAPES,
    SOFTCAPS,
    additive,
    check,
    float64,
    masks,
    operands,
)


def test_several_splits_are_the_oracle():
    for kind in ("none", "causal", "boolean"):
        q, k, v = operands(1, 2, 1, 3, 2100, 5, 7, torch.float32)
        mask, causal = masks(kind, 1, 2, 3, 2100, torch.float32)
        check(attention(q, k, v, mask, causal, 0.5), oracle.attention(q, k, v, mask, causal, 0.5), kind)


def test_tanh_of_the_oracle_is_within_three_ulps():
    x = torch.cat([torch.randn(20_000) * size for size in (1e-3, 0.3, 1, 9)])
    exact = x.double().tanh().abs()
    spacing = exact.float().nextafter(torch.tensor(2.0)).double() - exact.float().double()
    assert ((oracle.tanh(x).double().abs() - exact).abs() <= 3 * spacing).all()
    assert (oracle.tanh(-x) == -oracle.tanh(x)).all()
    assert oracle.tanh(torch.tensor([0.0, INF, -INF])).tolist() == [0.0, 1.0, -1.0]


def test_exp_of_the_oracle_is_within_an_ulp():
    x = torch.cat([-90 * torch.rand(50_000), -torch.rand(50_000), torch.tensor([0.0, -0.0, -INF, -87.0])])
    exact = x.double().exp()
    spacing = exact.float().nextafter(torch.tensor(2.0)).double() - exact.float().double()
    normal = x >= -87
    assert ((oracle.exp(x).double() - exact).abs()[normal] <= spacing[normal]).all()
    assert (oracle.exp(x)[~normal] == 0).all()
    assert oracle.exp(torch.tensor([0.0, NAN])).tolist()[0] == 1.0


@given(
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(MASKS),
    softcap=SOFTCAPS,
    seed=st.integers(0, 2**31),
    **SHAPES,
)
def test_near_float64(batch, kv_heads, group, queries, keys, size, value_size, dtype, kind, softcap, seed):
    generator = torch.Generator().manual_seed(seed)
    heads = kv_heads * group
    q, k, _ = operands(batch, heads, kv_heads, queries, keys, size, value_size, dtype, generator)
    v = torch.randn(batch, kv_heads, keys, value_size, generator=generator).to(dtype)
    mask, causal = masks(kind, batch, heads, queries, keys, dtype, generator)
    if mask is not None and dtype == torch.float64 and mask.dtype != torch.bool:
        mask = mask.double()
    out, _ = attention(q, k, v, mask, causal, 0.3, softcap)
    error = (out.double() - float64(q, k, v, mask, causal, 0.3, softcap)).abs().max()
    assert error <= {torch.float32: 1e-5, torch.float64: 1e-13}.get(dtype, 2 * torch.finfo(dtype).eps * 4)


def test_as_close_to_float64_as_stock():
    for dtype in LOW:
        q, k, v = (torch.randn(2, 4, 200, 64).to(dtype) for _ in range(3))
        reference = float64(q, k, v, None, False, 1 / 8)
        error, stock = (
            (f(q, k, v).double() - reference).abs().mean()
            for f in (scaled_dot_product_attention, F.scaled_dot_product_attention)
        )
        assert error <= 1.1 * stock


@EACH_DTYPE
def test_a_sample_is_the_same_alone_and_among_any_neighbours(dtype):
    for queries, keys, size in ((1, 70, 33), (9, 130, 32), (64, 64, 32)):
        q, k, v = operands(3, 4, 2, queries, keys, size, 17, dtype)
        mask = torch.rand(3, 1, 1, keys) < 0.8
        alone = [attention(*(x[i : i + 1] for x in (q, k, v, mask)), False, 0.2) for i in range(3)]
        for neighbour in (0.0, 3e4, NAN, INF):
            for size_of_batch in (3, 8, 33):
                places = torch.randperm(size_of_batch)[:3]
                batch = [torch.full((size_of_batch, *x.shape[1:]), neighbour, dtype=dtype) for x in (q, k, v)]
                together = torch.ones(size_of_batch, 1, 1, keys, dtype=torch.bool)
                for whole, part in zip((*batch, together), (q, k, v, mask), strict=True):
                    whole[places] = part
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    found = attention(*batch, together, False, 0.2)
                    for i, place in enumerate(places):
                        check([x[place : place + 1] for x in found], alone[i], f"beside {neighbour}")


@EACH_DTYPE
def test_a_decoded_query_is_its_row_of_a_prefill(dtype):
    keys = 1100
    q, k, v = operands(2, 4, 2, keys, keys, 24, 20, dtype)
    out, lse = attention(q, k, v, None, True, 0.2)
    for i in (0, 1, 5, 63, 64, 130, 1023, 1024, keys - 1):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = attention(q[:1, :, i : i + 1], k[:1, :, : i + 1], v[:1, :, : i + 1], None, False, 0.2)
            check(found, (out[:1, :, i : i + 1], lse[:1, :, i : i + 1]), f"query {i}")
    chunk = torch.ones(30, keys, dtype=torch.bool).tril(diagonal=700)
    found = attention(q[:, :, 700:730], k, v, chunk, False, 0.2)
    check(found, (out[:, :, 700:730], lse[:, :, 700:730]), "chunk of a prefill")


def test_stock_decode_is_not_its_row_of_a_prefill():
    q, k, v = operands(2, 4, 4, 500, 500, 24, 24, torch.float32)
    full = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    rows = [
        F.scaled_dot_product_attention(q[:1, :, i : i + 1], k[:1, :, : i + 1], v[:1, :, : i + 1])
        for i in range(100, 500, 50)
    ]
    prefill = [full[:1, :, i : i + 1] for i in range(100, 500, 50)]
    assert not all(map(same_bits, rows, prefill)), "the data shows no change of order"


def padding_masks(keys: int, padded: int, dtype: torch.dtype):
    attend = torch.arange(padded) < keys
    yield attend
    yield additive(attend, -INF, dtype)
    yield additive(attend, torch.finfo(dtype).min, dtype)
    if dtype in (torch.bfloat16, torch.float16):
        yield additive(attend, torch.finfo(torch.float32).min, torch.float32)


@EACH_DTYPE
@pytest.mark.parametrize("garbage", [0.0, 3e4, NAN, INF, -INF])
def test_masked_keys_at_the_end_change_nothing(dtype, garbage):
    for queries, keys, padded in ((1, 17, 64), (7, 60, 61), (3, 64, 200), (1, 1000, 2300), (2, 1030, 1100)):
        q, k, v = operands(1, 2, 1, queries, keys, 9, 18, dtype)
        expected = attention(q, k, v, None, False, 0.4)
        wide = [F.pad(x, (0, 0, 0, padded - keys), value=garbage) for x in (k, v)]
        for mask in padding_masks(keys, padded, dtype):
            check(attention(q, *wide, mask, False, 0.4), expected, f"{keys} of {padded} keys")


def masks_of(attend: torch.Tensor, dtype: torch.dtype):
    """One mask in all its forms."""
    yield attend
    yield additive(attend, -INF, dtype)
    yield additive(attend, torch.finfo(dtype).min, dtype)


@EACH_DTYPE
@pytest.mark.parametrize("garbage", [0.0, 3e4, NAN, INF])
def test_masked_keys_at_the_start_change_nothing(dtype, garbage):
    for queries, keys, padded in ((1, 17, 64), (7, 60, 61), (3, 64, 200), (1, 1000, 2300), (2, 1030, 1100)):
        q, k, v = operands(1, 4, 2, queries, keys, 9, 18, dtype)
        expected = attention(q, k, v, None, False, 0.4)
        wide = [F.pad(x, (0, 0, padded - keys, 0), value=garbage) for x in (k, v)]
        for mask in masks_of(torch.arange(padded) >= padded - keys, dtype):
            check(attention(q, *wide, mask, False, 0.4), expected, f"{keys} of {padded} keys")


@EACH_DTYPE
def test_left_padded_samples_of_a_causal_batch_are_those_alone(dtype):
    lengths, padded = (150, 70, 149, 3), 150
    q, k, v = operands(4, 4, 2, padded, padded, 24, 20, dtype)
    real = torch.arange(padded) >= padded - torch.tensor(lengths).unsqueeze(1)
    causal = torch.ones(padded, padded, dtype=torch.bool).tril()
    both = [(mask, False) for mask in masks_of(causal & real[:, None, None, :], dtype)]
    for mask, is_causal in (*both, (real[:, None, None, :], True)):
        out, lse = attention(q, k, v, mask, is_causal, 0.3)
        for i, length in enumerate(lengths):
            alone = attention(*(x[i : i + 1, :, -length:] for x in (q, k, v)), None, True, 0.3)
            check((out[i : i + 1, :, -length:], lse[i : i + 1, :, -length:]), alone, f"{length} tokens")


@EACH_DTYPE
def test_what_left_a_sliding_window_may_be_dropped(dtype):
    keys, window = 260, 100
    q, k, v = operands(1, 4, 2, keys, keys, 24, 20, dtype)
    distance = torch.arange(keys).unsqueeze(1) - torch.arange(keys)
    out, lse = attention(q, k, v, (distance >= 0) & (distance < window), False, 0.3)
    for i in (0, 5, 99, 100, 101, 163, 164, 200, 259):
        first = max(0, i + 1 - window)
        found = attention(q[:, :, i : i + 1], *(x[:, :, first : i + 1] for x in (k, v)), None, False, 0.3)
        check(found, (out[:, :, i : i + 1], lse[:, :, i : i + 1]), f"query {i}")


def test_windows_longer_and_shorter_than_a_split_are_the_oracle():
    """Rows of one tile whose blocks start at the same places, and rows that see more than a split."""
    for keys, window in ((300, 70), (1400, 1100), (1200, 1024)):
        q, k, v = operands(1, 2, 1, keys, keys, 3, 4, torch.float32)
        distance = torch.arange(keys).unsqueeze(1) - torch.arange(keys)
        mask = (distance >= 0) & (distance < window)
        out, lse = attention(q, k, v, mask, False, 0.5)
        for i in (0, 64, 69, 70, 71, 134, 200, keys - 65, keys - 1):
            at = slice(i, i + 1)
            expected = oracle.attention(q[:, :, at], k, v, mask[at], False, 0.5)
            check((out[:, :, at], lse[:, :, at]), expected, f"query {i} of {keys}, window {window}")


@EACH_DTYPE
def test_masked_keys_anywhere_are_not_read(dtype):
    for keys in (50, 130, 1200):
        q, k, v = operands(1, 2, 1, 3, keys, 9, 18, dtype)
        attend = torch.rand(keys) < 0.5
        attend[: keys // 2] = False
        attend[-1] = True
        expected = attention(q, k, v, attend, False, 0.4)
        dirty = [torch.where(attend.unsqueeze(1), x, NAN) for x in (k, v)]
        for lowest in (-INF, torch.finfo(dtype).min):
            mask = additive(attend, lowest, dtype)
            check(attention(q, *dirty, mask, False, 0.4), expected, f"mask of {lowest}")
            check(attention(q, k, v, mask, False, 0.4), expected, f"mask of {lowest}, clean")
        check(attention(q, *dirty, attend, False, 0.4), expected, "boolean mask")


@EACH_DTYPE
def test_a_later_key_does_not_leak_into_a_causal_row(dtype):
    q, k, v = operands(1, 2, 2, 80, 80, 9, 18, dtype)
    expected = [x[:, :, :40] for x in attention(q, k, v, None, True, 0.4)]
    k[:, :, 40:], v[:, :, 40:] = NAN, INF
    out, lse = attention(q, k, v, None, True, 0.4)
    check((out[:, :, :40], lse[:, :, :40]), expected)
    assert out[:, :, 40:].isnan().all()


@EACH_DTYPE
def test_special_values_propagate(dtype):
    q, k, v = operands(1, 1, 1, 4, 70, 5, 6, dtype)
    v[0, 0, 3, 2] = INF
    k[0, 0, 68] = NAN
    mask = torch.ones(4, 70, dtype=torch.bool)
    mask[:2, 68] = False
    out, lse = attention(q, k, v, mask, False, 0.4)
    assert out[0, 0, 2:].isnan().all()
    assert lse[0, 0, 2:].isnan().all()
    assert (out[0, 0, :2, 2] == INF).all()
    assert out[0, 0, :2, [0, 1, 3, 4, 5]].isfinite().all()
    canonical = torch.full((1,), NAN, dtype=dtype)
    assert (as_integers(out[0, 0, 2:]) == as_integers(canonical)).all()


@EACH_DTYPE
def test_rows_without_any_key_as_in_stock(dtype):
    q, k, v = (torch.randn(1, 2, n, 8).to(dtype) for n in (3, 70, 70))
    nothing = torch.zeros(3, 70, dtype=torch.bool)
    for mask in (nothing, torch.full((3, 70), -INF, dtype=dtype)):
        out, lse = attention(q, k, v, mask, False, 0.4)
        assert_same_bits(out, torch.zeros_like(out))
        assert (lse == -INF).all()
        assert same_bits(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).abs(), out)
    lowest = torch.full((3, 70), torch.finfo(dtype).min, dtype=dtype)
    out, _ = attention(q, k, v, lowest, False, 0.4)
    average = v.double().mean(2, keepdim=True).expand_as(out)
    torch.testing.assert_close(out.double(), average, atol=2 * torch.finfo(dtype).eps, rtol=0)
    if dtype != torch.float16:  # stock widens fp16 masks, whose lowest number does not absorb scores in fp32
        stock = F.scaled_dot_product_attention(q, k, v, attn_mask=lowest, scale=0.4)
        torch.testing.assert_close(stock.double(), average, atol=0.02, rtol=0)


def test_few_rows_over_many_keys_are_the_same_on_any_number_of_threads():
    q, k, v = operands(1, 1, 1, 1, 5000, 33, 40, torch.float32)
    torch.set_num_threads(1)
    expected = attention(q, k, v, None, False, 0.2)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        check(attention(q, k, v, None, False, 0.2), expected, f"{threads} threads")


@EACH_DTYPE
@pytest.mark.parametrize("kind", ["none", "boolean", "boolean of each row", "additive per head"])
def test_heads_that_walk_their_keys_together_are_those_alone(dtype, kind):
    """Five heads side by side in memory, of one query each, over keys that end within a second split."""
    q, k, v = operands(3, 10, 5, 1, 1100, 48, 40, dtype)
    mask, causal = masks(kind, 3, 10, 1, 1100, dtype)
    together = [LAYOUTS["heads inside"](x) for x in (q, k, v)]
    expected = attention(q, k, v, mask, causal, 0.2)
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        check(attention(*together, mask, causal, 0.2), expected, f"{threads} threads")
        first = attention(*(x[:1] for x in together), mask[:1] if kind == "boolean" else mask, causal, 0.2)
        check(first, [x[:1] for x in expected], f"of the first sample, {threads} threads")


@EACH_DTYPE
def test_empty_inputs(dtype):
    for batch, heads, queries, keys, size, value_size in (
        (0, 2, 3, 4, 5, 6),
        (1, 2, 0, 4, 5, 6),
        (1, 2, 3, 0, 5, 6),
        (1, 2, 3, 4, 5, 0),
        (1, 0, 3, 4, 5, 6),
        (1, 2, 3, 4, 0, 6),
    ):
        q, k, v = operands(batch, heads, heads, queries, keys, size, value_size, dtype)
        out, lse = attention(q, k, v, None, False, 0.5)
        assert out.shape == (batch, heads, queries, value_size)
        assert lse.shape == (batch, heads, queries)
        torch.testing.assert_close(out, float64(q, k, v, None, False, 0.5).to(dtype), atol=0.02, rtol=0.02)
    assert (attention(*operands(1, 2, 2, 3, 0, 5, 6, dtype), None, False, 0.5)[0] == 0).all()


def test_fake_strides_are_the_real_ones():

    for shape in ((2, 4, 2, 3, 7, 8, 5), (1, 1, 1, 1, 1, 1, 1), (0, 4, 4, 3, 7, 8, 5)):
        for dtype in DTYPES:
            real = attention(*operands(*shape, dtype), None, False, 1.0)
            with FakeTensorMode() as mode:
                fake = attention(*map(mode.from_tensor, operands(*shape, dtype)), None, False, 1.0)
            for a, b in zip(real, fake, strict=True):
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
