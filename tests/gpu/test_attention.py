"""Attention on a CUDA device: one row's bits whatever the batch, the padding, the tile, the other queries."""

import dataclasses
import itertools

import pytest
import torch

from bi_compile.templates.attention import attention, gpu_oracle, scaled_dot_product_attention
from tests.bits import assert_same_bits, same_bits
from tests.interpreted.attention_matrix import Chosen

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


@pytest.mark.parametrize("dtype", LOW[1:], ids=str)
@pytest.mark.parametrize("blocks", [1, 2])
def test_few_rows_have_a_walk_of_their_own(dtype, blocks, monkeypatch):
    """Programs of one block a step walk short splits by twos where others are many; infinities are met."""
    tiles = []
    stock = gpu.Tile.of_few
    one = gpu.Tile(8, 1, 1, few=1)

    def few_rows(*given) -> torch.Tensor:
        monkeypatch.setattr(
            gpu.Tile, "of_few", lambda *a: tiles.append(one if blocks == 1 else stock(*a)) or tiles[-1]
        )
        return run(*given)

    shapes = [
        (8, 2, 1, 3300, 128, 128), (8, 1, 1, 1000, 64, 80), (4, 2, 3, 4000, 80, 48), (4, 4, 8, 130, 16, 128),
        (3, 3, 1, 1, 128, 128), (4, 1, 2, 1025, 128, 64), (2, 1, 1, 127, 8, 8), (4, 2, 2, 700, 96, 96),
    ]  # fmt: skip
    for heads, kv_heads, queries, keys, size, value_size in shapes:
        q, k, v = inputs(3, heads, kv_heads, queries, keys, size, value_size, dtype)
        for causal, cap in ((True, 0.0), (False, 0.0), (False, 2.0)):
            few = few_rows(q, k, v, None, causal, cap)
            monkeypatch.setattr(gpu.Tile, "of_few", lambda *a: None)
            name = f"{heads} {kv_heads} {queries} {keys} {size} {value_size} {causal} {cap}"
            assert_same_bits(few, run(q, k, v, None, causal, cap), name)
            if causal and queries > 1:
                infinite = v.clone()
                infinite[:, :, queries - 1 :] = INF
                found = few_rows(q, k, infinite, None, causal, cap)
                assert_same_bits(found[:, :, :-1].contiguous(), few[:, :, :-1].contiguous(), name)
                assert (found[:, :, -1] == INF).all()
    assert {tile.few for tile in tiles} == {blocks}


@pytest.mark.parametrize("dtype", LOW[1:], ids=str)
def test_decoding_of_many_is_that_of_one(dtype):
    """Programs of one warp where they are many, of two where they are few; the other walk where heads are."""
    walks = {}
    q, k, v = inputs(72, 32, 8, 1, 4100, 128, 128, dtype)
    stock = gpu.Tile.of_few

    def decoded(count: int) -> torch.Tensor:
        tiles = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu.Tile, "of_few", lambda *a: tiles.append(stock(*a)) or tiles[-1])
            found = run(q[:count], k[:count], v[:count])
        walks[count] = (tiles[0].few, tiles[0].warps) if tiles else None
        return found

    alone = decoded(1)
    for count in (2, 4, 8, 16, 24, 32, 72):
        assert_same_bits(decoded(count)[:1], alone, f"{count}")
    assert set(walks.values()) == {(2, 2), (1, 1), None}


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


@pytest.mark.parametrize("dtype", LOW[1:], ids=str)
@pytest.mark.parametrize(
    ("size", "value_size", "group"),
    [(256, 256, 4), (256, 256, 1), (200, 232, 7), (240, 208, 2), (64, 256, 3)],
)
def test_values_that_are_met_one_block_later(dtype, size, value_size, group, monkeypatch):
    """In large heads: the same bits without, by decoding and in another batch; a control; float64."""
    late = []
    monkeypatch.setattr(gpu, "attend", Chosen(gpu.attend, lambda given: late.append(given["LATE"]) or True))
    choose = gpu.Tile.choose
    apart = lambda *a: dataclasses.replace(choose(*a), late=False)  # noqa: E731
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: 1)
    for batch, keys in ((2, 257), (1, 320), (3, 1100)):
        q, k, v = inputs(batch, 2 * group, 2, keys, keys, size, value_size, dtype, seed=keys)
        for causal in (True, False):
            del late[:]
            whole = run(q, k, v, is_causal=causal)
            assert late[0], "splits are walked in sequence"
            with monkeypatch.context() as patch:
                patch.setattr(gpu.Tile, "choose", apart)
                assert_same_bits(run(q, k, v, is_causal=causal), whole, f"{keys} {causal}")
            exact = torch.nn.functional.scaled_dot_product_attention(
                q.double(), k.double(), v.double(), is_causal=causal, enable_gqa=True
            )
            torch.testing.assert_close(whole.double(), exact, rtol=0.02, atol=0.02)
        whole = run(q, k, v, is_causal=True)
        assert_same_bits(run(q[:1], k[:1], v[:1], is_causal=True), whole[:1].contiguous(), "alone")
        for i in (0, 63, 255, 256, keys - 1):
            row = run(q[:1, :, i : i + 1], k[:1, :, : i + 1], v[:1, :, : i + 1])
            assert_same_bits(row, whole[:1, :, i : i + 1].contiguous(), f"query {i} of {keys}")
    other = whole.clone()
    v[0, 0, keys - 2] += 1
    assert not same_bits(run(q, k, v, is_causal=True), other)


@pytest.mark.parametrize(("size", "value_size"), [(144, 160), (160, 136), (72, 96)])
@pytest.mark.parametrize("name", ["none", "causal", "boolean", "added"])
def test_two_tiles_have_the_bits_of_one(size, value_size, name, monkeypatch):
    """Where splits are walked in sequence; second tiles of 16 and 32 columns. A control; float64."""
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: 1)
    q, k, v = inputs(2, 4, 2, 290, 1100, size, value_size, torch.bfloat16)
    mask = (torch.rand(2, 1, 290, 1100, device="cuda") > 0.3) if name in ("boolean", "added") else None
    if name == "added":
        mask = torch.where(mask, torch.randn_like(mask, dtype=q.dtype), -INF)
    found = run(q, k, v, mask, is_causal=name == "causal")
    with monkeypatch.context() as patch:
        patch.setattr(gpu.Columns, "of", lambda size: gpu.Columns(max(16, gpu.power_of_two(size))))
        assert_same_bits(run(q, k, v, mask, is_causal=name == "causal"), found, name)
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double(), k.double(), v.double(), mask if mask is None or name == "boolean" else mask.double(),
        is_causal=name == "causal", enable_gqa=True,
    )  # fmt: skip
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0.02)
    v[0, 0, 250, -1] += 1
    assert not same_bits(run(q, k, v, mask, is_causal=name == "causal"), found)


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
