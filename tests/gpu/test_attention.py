"""Attention on a CUDA device: one row's bits whatever the batch, the padding, the tile, the other queries."""

import itertools

import pytest
import torch

from bi_compile.templates.attention import attention, gpu_oracle, scaled_dot_product_attention
from tests.bits import assert_same_bits, same_bits

if torch.cuda.is_available():
    from bi_compile.templates.attention import gpu

LOW = [torch.float32, torch.bfloat16, torch.float16]
EACH_DTYPE = pytest.mark.parametrize("dtype", LOW, ids=str)
NAN, INF = float("nan"), float("inf")


def inputs(batch, heads, kv_heads, queries, keys, size, value_size, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, heads, queries, size), (batch, kv_heads, keys, size), (batch, kv_heads, keys, value_size),
    )  # fmt: skip
    return [torch.randn(*shape, generator=g).to(dtype).cuda() for shape in shapes]


def run(q, k, v, mask=None, is_causal=False, softcap=0.0):
    return attention(q, k, v, mask, is_causal, q.shape[-1] ** -0.5, softcap)[0].contiguous()


@EACH_DTYPE
@pytest.mark.parametrize("size", [8, 80, 256])
def test_close_to_float64(dtype, size):
    q, k, v = inputs(2, 4, 2, 37, 1100, size, size, dtype)
    mask = torch.rand(2, 1, 37, 1100, device="cuda") > 0.3
    for causal, given in (
        (False, None),
        (True, None),
        (False, mask),
        (False, torch.randn_like(mask, dtype=dtype)),
    ):
        arguments = {"attn_mask": given, "is_causal": causal, "enable_gqa": True}
        wide = {
            **arguments,
            "attn_mask": given.double() if given is not None and given.dtype != torch.bool else given,
        }
        stock = torch.nn.functional.scaled_dot_product_attention
        exact = stock(q.double(), k.double(), v.double(), **wide)
        ours = (scaled_dot_product_attention(q, k, v, **arguments).double() - exact).square().mean()
        theirs = (stock(q, k, v, **arguments).double() - exact).square().mean()
        # Stock may round less where it does not use the tensor cores: then half an ulp of the result counts.
        assert ours.sqrt() <= 1.5 * theirs.sqrt() + torch.finfo(dtype).eps / 4 * exact.square().mean().sqrt()


def test_fp32_is_the_oracle():
    q, k, v = inputs(1, 2, 1, 5, 1200, 40, 24, torch.float32)
    mask = torch.rand(1, 1, 5, 1200) > 0.4
    for given, causal, cap in ((None, False, 0.0), (mask, False, 0.0), (None, True, 3.0)):
        on_device = None if given is None else given.cuda()
        found, _ = attention(q, k, v, on_device, causal, 0.2, cap)
        expected, _ = gpu_oracle.attention(q.cpu(), k.cpu(), v.cpu(), given, causal, 0.2, cap)
        assert_same_bits(found.cpu().contiguous(), expected.contiguous())


@EACH_DTYPE
def test_every_tile_and_both_ways_through_splits(dtype, monkeypatch):
    q, k, v = inputs(2, 4, 2, 150, 2300, 64, 64, dtype)
    whole = run(q, k, v, is_causal=True)
    tiles = (16, 32) if dtype == torch.float32 else (16, 32, 64, 128)
    for rows, warps, processors in itertools.product(tiles, (4, 8), (1, 10_000)):
        monkeypatch.setattr(gpu.Tile, "choose", lambda *a, r=rows, w=warps: gpu.Tile(r, w, 2))
        monkeypatch.setattr(gpu, "_multiprocessors", lambda x, p=processors: p)
        assert_same_bits(run(q, k, v, is_causal=True), whole, f"{rows} {warps} {processors}")


@EACH_DTYPE
def test_full_forward_chunks_and_decoding_agree(dtype):
    q, k, v = inputs(2, 4, 2, 1300, 1300, 64, 64, dtype)
    whole = run(q, k, v, is_causal=True)
    for i in (0, 1, 63, 64, 127, 1023, 1024, 1025, 1299):
        row = run(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1])
        assert_same_bits(row, whole[:, :, i : i + 1].contiguous(), f"query {i}")
    chunk = torch.ones(300, 1300, dtype=torch.bool, device="cuda").tril(1000)
    found = run(q[:, :, 1000:], k, v, chunk.expand(2, 1, 300, 1300))
    assert_same_bits(found, whole[:, :, 1000:].contiguous(), "chunk")


@EACH_DTYPE
def test_a_sample_is_the_same_in_any_batch_and_padding(dtype):
    q, k, v = inputs(6, 4, 4, 33, 70, 48, 48, dtype)
    length = 70
    for size in (1, 2, 3, 4, 7, 8, 16, 33):
        for value in (NAN, INF, 3e4, 0.0):
            padded = length + (size % 3) * 50
            own = size % 6
            bq = torch.full((size, 4, 33, 48), value, dtype=dtype, device="cuda")
            bk, bv = (torch.full((size, 4, padded, 48), value, dtype=dtype, device="cuda") for _ in range(2))
            at = size // 2
            bq[at], bk[at, :, :length], bv[at, :, :length] = q[own], k[own], v[own]
            allowed = (torch.arange(padded, device="cuda") < length).expand(size, 1, 33, padded)
            alone = run(q[own : own + 1], k[own : own + 1], v[own : own + 1])
            for mask in (allowed, torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)):
                assert_same_bits(run(bq, bk, bv, mask)[at : at + 1], alone, f"{size} {value} {mask.dtype}")


def test_stock_pytorch_fails_the_same_check():
    stock = torch.nn.functional.scaled_dot_product_attention
    q, k, v = inputs(2, 4, 4, 1300, 1300, 64, 64, torch.bfloat16)
    whole = stock(q, k, v, is_causal=True)
    rows = [
        same_bits(
            stock(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1]), whole[:, :, i : i + 1].contiguous()
        )
        for i in range(1000, 1300, 7)
    ]
    assert not all(rows)


def test_what_is_seen_is_seen():
    q, k, v = inputs(1, 1, 1, 2, 70, 16, 16, torch.bfloat16)
    v[0, 0, 5, 0], v[0, 0, 6, 1], v[0, 0, 7, 2] = NAN, INF, -INF
    mask = torch.ones(1, 1, 2, 70, dtype=torch.bool, device="cuda")
    mask[0, 0, 1, 5:8] = False
    found = run(q, k, v, mask)
    assert found[0, 0, 0, 0].isnan()
    assert found[0, 0, 0, 1:3].tolist() == [INF, -INF]
    assert found[0, 0, 1].isfinite().all()


def test_gradients():
    q, k, v = (x.requires_grad_() for x in inputs(2, 4, 2, 20, 33, 16, 16, torch.float32))
    out = scaled_dot_product_attention(q, k, v, enable_gqa=True)
    out.square().sum().backward()
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    torch.nn.functional.scaled_dot_product_attention(*wide, enable_gqa=True).square().sum().backward()
    for x, w in zip((q, k, v), wide, strict=True):
        torch.testing.assert_close(x.grad, w.grad.float(), rtol=1e-4, atol=1e-5)
