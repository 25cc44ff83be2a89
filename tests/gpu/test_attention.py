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
@pytest.mark.parametrize("size", [8, 80, 256, 264, 1024])
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


SMALL = [(16, 2), (16, 4), (16, 8)]
TILES = [
    (dtype, tile)
    for dtype in LOW
    for tile in (*SMALL, *([] if dtype == torch.float32 else [(32, 4), (32, 8), (64, 4), (64, 8), (128, 8)]))
]


@pytest.mark.parametrize(("dtype", "tile"), TILES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_every_tile_and_both_ways_through_splits(dtype, tile, masked, monkeypatch):
    q, k, v = inputs(2, 4, 2, 150, 2300, 64, 64, dtype)
    mask = (torch.rand(2, 1, 150, 2300, device="cuda") > 0.3) if masked else None
    whole = run(q, k, v, mask, is_causal=not masked)
    for processors, maps in itertools.product((1, 10_000), (False, True) if tile[1] == 8 else (True,)):
        monkeypatch.setattr(gpu.Tile, "choose", lambda *a: gpu.Tile(*tile, 2))
        monkeypatch.setattr(gpu, "_multiprocessors", lambda x, p=processors: p)
        monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x, m=maps: m)
        found = run(q, k, v, mask, is_causal=not masked)
        assert_same_bits(found, whole, f"{processors} {maps}")


@EACH_DTYPE
def test_numbers_that_are_added_in_every_tile(dtype, monkeypatch):
    """Zeros to begin with, then numbers; the bits of a row alone, which has its mask read otherwise."""
    q, k, v = inputs(1, 4, 2, 90, 1300, 64, 64, dtype)
    mask = torch.randn(1, 1, 90, 1300, device="cuda").to(dtype).tril(900)
    mask[..., :500], mask[0, 0, 7:50, 700:] = 0.0, -INF
    whole = run(q, k, v, mask)
    for i in (0, 7, 49, 89):
        row = run(q[:, :, i : i + 1], k, v, mask[:, :, i : i + 1])
        assert_same_bits(row, whole[:, :, i : i + 1].contiguous(), f"query {i}")
    tiles = [(16, 4)] if dtype == torch.float32 else [(16, 2), (32, 8), (64, 4), (128, 8)]
    for (rows, warps), processors in itertools.product(tiles, (1, 10_000)):
        monkeypatch.setattr(gpu.Tile, "choose", lambda *a, r=rows, w=warps: gpu.Tile(r, w, 2))
        monkeypatch.setattr(gpu, "_multiprocessors", lambda x, p=processors: p)
        assert_same_bits(run(q, k, v, mask), whole, f"{rows} {warps} {processors}")


@EACH_DTYPE
def test_full_forward_chunks_and_decoding_agree(dtype):
    q, k, v = inputs(2, 4, 2, 1300, 1300, 64, 64, dtype)
    whole = run(q, k, v, is_causal=True)
    for i in (0, 1, 63, 64, 127, 255, 256, 511, 512, 1023, 1024, 1025, 1299):
        row = run(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1])
        assert_same_bits(row, whole[:, :, i : i + 1].contiguous(), f"query {i}")
    chunk = torch.ones(300, 1300, dtype=torch.bool, device="cuda").tril(1000)
    found = run(q[:, :, 1000:], k, v, chunk.expand(2, 1, 300, 1300))
    assert_same_bits(found, whole[:, :, 1000:].contiguous(), "chunk")


@EACH_DTYPE
@pytest.mark.parametrize(
    ("size", "value_size"), [(80, 96), (192, 128), (264, 264), (320, 320), (512, 512), (1024, 1024)]
)
def test_heads_of_other_sizes_agree_in_forward_chunks_and_decoding(dtype, size, value_size):
    """Up to 192 they are in two tiles on Hopper, but not where rows are few."""
    q, k, v = inputs(2, 2, 1, 520, 520, size, value_size, dtype)
    whole = run(q, k, v, is_causal=True)
    assert_same_bits(run(q[:1], k[:1], v[:1], is_causal=True), whole[:1].contiguous(), "alone")
    for i in (0, 1, 64, 255, 256, 511, 512, 519):
        row = run(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1])
        assert_same_bits(row, whole[:, :, i : i + 1].contiguous(), f"query {i}")
    chunk = torch.ones(120, 520, dtype=torch.bool, device="cuda").tril(400)
    found = run(q[:, :, 400:], k, v, chunk.expand(2, 1, 120, 520))
    assert_same_bits(found, whole[:, :, 400:].contiguous(), "chunk")


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


@EACH_DTYPE
def test_a_head_is_the_same_among_others_that_take_turns(dtype):
    q, k, v = inputs(3, 6, 3, 300, 300, 64, 64, dtype)
    whole = run(q, k, v, is_causal=True)
    for i in range(3):
        for head in range(3):
            own, group = slice(head, head + 1), slice(2 * head, 2 * head + 2)
            alone = run(q[i : i + 1, group], k[i : i + 1, own], v[i : i + 1, own], is_causal=True)
            assert_same_bits(alone[0], whole[i, group].contiguous(), f"{i} {head}")


@EACH_DTYPE
@pytest.mark.parametrize("queries", [1, 40])
def test_padding_on_the_left_is_not_there(dtype, queries):
    q, k, v = inputs(3, 4, 2, queries, 1300, 64, 64, dtype)
    for pad in (1, 16, 63, 64, 700):
        bk, bv = (torch.full((3, 2, 1300 + pad, 64), NAN, dtype=dtype, device="cuda") for _ in range(2))
        bk[:, :, pad:], bv[:, :, pad:] = k, v
        # Sample 1 alone is not padded: it is as long as the others with their padding.
        bk[1, :, :pad], bv[1, :, :pad] = k[1, :, :pad], v[1, :, :pad]
        allowed = torch.arange(1300 + pad, device="cuda") >= pad
        allowed = allowed.expand(3, 1, queries, -1).clone()
        allowed[1] = True
        expected = run(q, k, v)
        longer = run(q[1:2], bk[1:2], bv[1:2])
        for mask in (allowed, torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)):
            found = run(q, bk, bv, mask)
            for sample in (0, 2):
                assert_same_bits(found[sample], expected[sample], f"{pad} {mask.dtype}")
            assert_same_bits(found[1], longer[0], f"{pad} {mask.dtype}, without padding")


@EACH_DTYPE
def test_a_sliding_window_whose_cache_drops_what_left_it(dtype, monkeypatch):
    q, k, v = inputs(1, 4, 2, 700, 700, 64, 64, dtype)
    key, query = torch.arange(700, device="cuda"), torch.arange(700, device="cuda")[:, None]
    window = ((key <= query) & (key > query - 300))[None, None]
    whole = run(q, k, v, window)
    for tile in [(16, 2, 1), (16, 4, 2)] + ([] if dtype == torch.float32 else [(32, 4, 2), (64, 4, 3)]):
        monkeypatch.setattr(gpu.Tile, "spread", lambda *a, tile=tile: gpu.Tile(*tile))
        assert_same_bits(run(q, k, v, window), whole, f"{tile}")
        added = torch.where(window, 0.0, -INF).to(dtype)
        assert_same_bits(run(q, k, v, added), whole, f"{tile}, added")
    monkeypatch.undo()
    for i in (0, 299, 300, 301, 450, 699):
        kept = slice(max(0, i - 299), i + 1)
        row = run(q[:, :, i : i + 1], k[:, :, kept], v[:, :, kept])
        assert_same_bits(row, whole[:, :, i : i + 1].contiguous(), f"query {i}")
        row = run(q[:, :, i : i + 1], k, v, window[:, :, i : i + 1])
        assert_same_bits(row, whole[:, :, i : i + 1].contiguous(), f"query {i}, nothing dropped")
    v[:, :, 650] = NAN
    found = run(q, k, v, window)
    assert_same_bits(found[:, :, :650].contiguous(), whole[:, :, :650].contiguous(), "rows without that key")
    assert found[:, :, 650:].isnan().all()


@EACH_DTYPE
def test_a_paged_cache_in_any_order(dtype):
    q, k, v = inputs(1, 4, 2, 1, 1280, 64, 64, dtype)
    expected = run(q, k, v)
    for size in (16, 128):
        order = torch.randperm(1280 // size, device="cuda")
        places = torch.argsort(order)
        # [pages, page size, heads, head size], as a pool holds them.
        pools = [x[0].transpose(0, 1).reshape(-1, size, 2, 64)[order] for x in (k, v)]
        paged = [pool[places].reshape(1, 1280, 2, 64).transpose(1, 2) for pool in pools]
        assert_same_bits(run(q, *paged), expected, f"pages of {size}")


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


@EACH_DTYPE
def test_any_number_of_programs_does_tiles_again(dtype, monkeypatch):
    """Infinities at the ends of blocks: the rows before them in a block multiply them by a weight of 0."""
    q, k, v = inputs(2, 4, 2, 450, 450, 64, 64, dtype)
    causal = torch.ones(1, 1, 450, 450, dtype=torch.bool, device="cuda").tril()
    expected = run(q, k, v, is_causal=True)
    # The last row of one head alone, then all tiles.
    for first, sample, kv_head in ((449, 1, 1), (63, slice(None), slice(None))):
        v[sample, kv_head, first::64, 3] = INF
        heads = slice(2, 4) if kv_head == 1 else kv_head
        expected[sample, heads, first:, 3] = INF
        for programs in (1, 7, 131, 10**6):
            monkeypatch.setattr(gpu, "careful_programs", lambda steps, p, n=programs: min(steps, n))
            assert_same_bits(run(q, k, v, is_causal=True), expected, f"{programs}")
        monkeypatch.undo()
        assert_same_bits(run(q, k, v, is_causal=True), expected, "causal")
        assert_same_bits(run(q, k, v, causal), expected, "boolean")
        assert_same_bits(run(q, k, v, torch.where(causal, 0.0, -INF).to(dtype)), expected, "added")


@pytest.mark.parametrize("name", ["plain", "causal", "boolean", "added", "softcap"])
@EACH_DTYPE
def test_gradients(dtype, name):
    """Close to float64, and a sample's own whatever its batch."""
    q, k, v = inputs(3, 4, 2, 20, 33, 16, 16, dtype)
    mask = {
        "boolean": torch.rand(3, 1, 20, 33, device="cuda") > 0.3,
        "added": torch.randn(3, 1, 20, 33, device="cuda", dtype=dtype),
    }.get(name)
    ours = {"is_causal": name == "causal", "softcap": 2.0 if name == "softcap" else 0.0}

    def gradients(q, k, v, mask):
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        out = scaled_dot_product_attention(*leaves, mask, enable_gqa=True, **ours)
        out.square().sum().backward()
        return [x.grad for x in leaves]

    found = gradients(q, k, v, mask)
    for sample in range(3):
        own = slice(sample, sample + 1)
        alone = gradients(q[own], k[own], v[own], None if mask is None else mask[own])
        for whole, single in zip(found, alone, strict=True):
            assert_same_bits(whole[own].contiguous(), single.contiguous(), f"sample {sample}")

    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    wq, wk, wv = wide[0], *(x.repeat_interleave(2, 1) for x in wide[1:])
    scores = wq @ wk.mT * 16**-0.5
    if name == "softcap":
        scores = torch.tanh(scores / 2) * 2
    if name == "added":
        scores = scores + mask.double()
    keep = mask if name == "boolean" else torch.ones(20, 33, dtype=torch.bool, device="cuda")
    if name == "causal":
        keep = keep.tril()
    (torch.softmax(scores.masked_fill(~keep, -INF), -1) @ wv).square().sum().backward()
    for x, w in zip(found, wide, strict=True):
        error = (x.double() - w.grad).norm() / w.grad.norm()
        assert error < 20 * torch.finfo(dtype).eps, error


def test_numbers_far_from_1():
    """Exponents are one fused multiply-add: large scores must not overflow them."""
    q, k, v = inputs(1, 2, 1, 40, 300, 64, 64, torch.bfloat16)
    wide = [x.double() for x in (q * 300, k.repeat_interleave(2, 1) * 300, v.repeat_interleave(2, 1))]
    exact = torch.nn.functional.scaled_dot_product_attention(*wide)
    assert (run(q * 300, k * 300, v).double() - exact).norm() / exact.norm() < 0.02
