"""Attention in Triton without a GPU: the bits of its own oracle in the interpreter, whatever the tile.

Products are chains of fused multiply-adds here, for kernel and oracle alike. `tests/gpu/` runs the kernels
on a device.
"""

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.chain import chain

from bi_compile.templates.attention import gpu, gpu_held, gpu_oracle  # isort: skip

EXP2, LOG = interpreter.numpy_function("exp2"), interpreter.numpy_function("log")
NAN, INF = float("nan"), float("inf")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _chains():
    interpreter.use_dot(chain)


@pytest.fixture
def parallel(monkeypatch):
    """Enough processors that splits are walked in parallel."""
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: 1000)


def inputs(batch, heads, kv_heads, queries, keys, size, value_size, dtype=FP32, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, queries, size, generator=g)
    k = torch.randn(batch, kv_heads, keys, size, generator=g)
    v = torch.randn(batch, kv_heads, keys, value_size, generator=g)
    return [x.to(dtype) for x in (q, k, v)]


def masks(batch, queries, keys, seed=1):
    g = torch.Generator().manual_seed(seed)
    allowed = torch.rand(batch, 1, queries, keys, generator=g) > 0.4
    added = torch.randn(batch, 1, queries, keys, generator=g)
    lowest = torch.finfo(FP32).min
    return {
        "none": None,
        "boolean": allowed,
        "added": torch.where(allowed, added, lowest),
        "infinite": torch.where(allowed, added, -INF),
        "shared": allowed[:1, :, :1].expand(batch, 1, queries, keys),
        "nothing": torch.zeros_like(allowed),
    }


def check(q, k, v, mask=None, is_causal=False, softcap=0.0):
    found, lse = gpu.attention(q, k, v, mask, is_causal, 0.3, softcap)
    expected, expected_lse = gpu_oracle.attention(q, k, v, mask, is_causal, 0.3, softcap, EXP2, LOG)
    assert_same_bits(found.contiguous(), expected.contiguous(), "output")
    assert_same_bits(lse.contiguous(), expected_lse.contiguous(), "lse")
    return found


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_the_oracle_in_each_dtype(dtype):
    check(*inputs(2, 2, 1, 5, 70, 8, 12, dtype), is_causal=True)
    check(*inputs(1, 3, 3, 1, 65, 17, 5, dtype))


def test_heads_that_are_multiplied_by_pieces():
    """fp32: queries and keys 32 numbers at a time, values of 32 keys or 16."""
    check(*inputs(1, 2, 1, 3, 70, 72, 80))
    check(*inputs(1, 1, 1, 2, 33, 96, 130), is_causal=True)


def test_heads_above_256():
    """16 bits: queries and keys 128 numbers at a time. A prefill once asked for too much shared memory."""
    check(*inputs(1, 2, 1, 3, 70, 264, 300, BF16))
    check(*inputs(1, 1, 1, 33, 33, 300, 20, BF16), is_causal=True)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_values_above_512(dtype):
    """256 numbers at a time, with the scores worked out for each; what is not finite in one is done again."""
    q, k, v = inputs(1, 2, 1, 3, 70, 8, 600, dtype)
    check(q, k, v, masks(1, 3, 70)["boolean"])
    clean = check(q, k, v, is_causal=True)
    for place in (10, 590):
        strange = v.clone()
        strange[0, 0, 2, place] = INF
        found, _ = gpu.attention(q, k, strange, None, True, 0.3)
        assert (found[:, :, 2, place] == INF).all()
        found[:, :, 2, place] = clean[:, :, 2, place]
        assert_same_bits(found.contiguous(), clean.contiguous(), f"infinite at {place}")


def test_heads_that_come_in_turns():
    """Nine of them, eight at a time: their tiles, the longest first."""
    check(*inputs(3, 3, 3, 35, 35, 4, 4, BF16), is_causal=True)


@pytest.mark.parametrize("name", ["boolean", "added", "infinite", "shared", "nothing"])
def test_masks(name):
    for dtype in (FP32, BF16):
        q, k, v = inputs(2, 2, 1, 3, 70, 16, 16, dtype)
        check(q, k, v, masks(2, 3, 70)[name])


def test_masks_of_batches_and_heads():
    """Three heads share keys, in tiles of 16 rows, whose first key is the same."""
    q, k, v = inputs(2, 3, 1, 7, 70, 16, 16, BF16)
    g = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 3, 7, 70, generator=g) > 0.4
    allowed[..., 0] = True
    added = torch.where(allowed, torch.randn(allowed.shape, generator=g), -INF)
    for mask in (allowed, added[:1]):
        check(q, k, v, mask)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_softcap_and_strides(dtype):
    q, k, v = inputs(1, 2, 2, 3, 40, 16, 16, dtype)
    check(q, k.transpose(2, 3).contiguous().transpose(2, 3), v, is_causal=True, softcap=2.0)


def test_splits_in_sequence():
    check(*inputs(1, 1, 1, 2, 1600, 4, 4))
    # Of this many rows some show how sums of splits were rounded.
    check(*inputs(1, 8, 1, 4, 1100, 8, 8))
    assert gpu.splits_of(1600) == len(list(gpu_oracle.split_ends(1600))) == 6


@pytest.mark.parametrize(("kept", "name"), [(16, "none"), (0, "added")])
def test_a_sum_that_is_held_in_memory(kept, name, monkeypatch):
    """Of the splits that are finished; two tiles in turns, and rows that are not there."""
    held = []
    stock = gpu_held.held_at
    monkeypatch.setattr(gpu_held, "held_at", lambda *a: held.append(a) or stock(*a))
    monkeypatch.setattr(gpu.Tile, "choose", lambda *a: gpu.Tile(16, 8, 2, kept=kept))
    mask = masks(1, 10, 800)[name]
    check(*inputs(1, 4, 2, 10, 800, 16, 32, BF16), mask)
    assert held
    if name == "none":
        del held[:]
        check(*inputs(1, 2, 1, 10, 200, 16, 32, BF16), is_causal=True)
        assert not held, "one split is never held"


@pytest.mark.usefixtures("parallel")
def test_splits_in_parallel():
    check(*inputs(1, 2, 1, 2, 1600, 4, 4))
    check(*inputs(1, 1, 1, 3, 1100, 4, 4), masks(1, 3, 1100)["added"])


@pytest.mark.usefixtures("parallel")
def test_more_splits_than_are_merged_side_by_side(monkeypatch):
    monkeypatch.setattr(gpu, "_MERGED", 2 * 128)
    check(*inputs(1, 2, 1, 2, 1600, 4, 4))
    q, k, v = inputs(1, 1, 1, 3, 1100, 4, 4)
    mask = torch.ones(1, 1, 3, 1100, dtype=torch.bool)
    mask[..., 5], mask[..., 600:900] = False, False
    clean = check(q, k, v, mask)
    v[:, :, 5], v[:, :, 700] = INF, NAN
    assert_same_bits(gpu.attention(q, k, v, mask, False, 0.3)[0].contiguous(), clean.contiguous(), "masked")
    # All keys of a split count as much as each other, until a row is found to have others.
    numbers = torch.zeros(1, 1, 3, 1100).masked_fill(~mask, torch.finfo(FP32).min)
    numbers[..., 512:1024] = torch.finfo(FP32).min
    v[:, :, 5], v[:, :, 700] = 0.0, 0.0
    clean = check(q, k, v, numbers)
    v[:, :, 5], v[:, :, 700] = INF, NAN
    assert_same_bits(
        gpu.attention(q, k, v, numbers, False, 0.3)[0].contiguous(), clean.contiguous(), "lowest"
    )


@pytest.mark.parametrize("keys", [1, 255, 256, 257, 1024, 1025, 1536, 1537])
def test_the_number_of_splits(keys):
    assert gpu.splits_of(keys) == len(list(gpu_oracle.split_ends(keys)))


@pytest.mark.usefixtures("parallel")
def test_padding_on_the_left_is_not_there():
    """Blocks and splits are counted from the first visible key, in sequence and in parallel."""
    q, k, v = inputs(1, 2, 1, 3, 300, 8, 8)
    alone = check(q, k, v)
    for pad in (1, 37):
        padded = [torch.cat([torch.full_like(x[:, :, :pad], NAN), x], 2) for x in (k, v)]
        mask = (torch.arange(300 + pad) >= pad).expand(1, 1, 3, -1)
        for given in (mask, torch.where(mask, 0.0, torch.finfo(FP32).min), torch.where(mask, 0.0, -INF)):
            found, _ = gpu.attention(q, *padded, given, False, 0.3)
            assert_same_bits(found.contiguous(), alone.contiguous(), f"{pad} {given.dtype}")


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_each_row_counts_from_its_own_first_key(dtype):
    """A sliding window: the rows of a tile have different first keys, and a cache may drop what left it."""
    q, k, v = inputs(1, 2, 1, 90, 90, 8, 8, dtype)
    q = q[:, :, 66:]
    key, query = torch.arange(90), torch.arange(66, 90)[:, None]
    window = ((key <= query) & (key > query - 70))[None, None]
    whole = check(q, k, v, window)
    check(q, k, v, torch.where(window, 0.0, -INF).to(dtype))
    for i in (66, 69, 70, 89):
        kept, own = slice(max(0, i - 69), i + 1), slice(i - 66, i - 65)
        row, _ = gpu.attention(q[:, :, own], k[:, :, kept], v[:, :, kept], None, False, 0.3)
        assert_same_bits(row.contiguous(), whole[:, :, own].contiguous(), f"query {i}")


@pytest.mark.parametrize(("name", "ways"), [("boolean", 1), ("added", 1000)])
def test_rows_that_are_far_apart_share_a_tile(name, ways, monkeypatch):
    """A sliding window over many queries: those of one tile enter and leave it blocks apart, splits too."""
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: ways)
    q, k, v = inputs(1, 1, 1, 66, 404, 4, 4)
    key = torch.arange(404)
    window = torch.zeros(66, 404, dtype=torch.bool)
    window[16:64, 3] = True
    for row, first in ((0, 0), (1, 1), (64, 64), (65, 70)):
        window[row] = (key >= first) & (key < first + 330) & ((key % 11 != 5) | (key == first))
    window = window[None, None]
    if name == "added":
        check(q, k, v, torch.where(window, torch.randn(window.shape), -INF))
        return
    whole = check(q, k, v, window)
    apart = []
    stock = gpu.Tile.spread
    monkeypatch.setattr(gpu.Tile, "spread", lambda *a: apart.append(a) or stock(*a))
    v[:, :, 396] = NAN
    found, _ = gpu.attention(q, k, v, window, False, 0.3)
    assert_same_bits(found[:, :, :65].contiguous(), whole[:, :, :65].contiguous(), "rows without that key")
    assert found[:, :, 65].isnan().all()
    gpu.attention(q[:, :, :3], k, v, window[:, :, :1].expand(-1, -1, 3, -1), False, 0.3)
    assert len(apart) == 1, "rows that begin at one key"


def test_a_mask_and_causality():
    q, k, v = inputs(1, 1, 1, 9, 70, 8, 8)
    for mask in masks(1, 9, 70).values():
        check(q, k, v, mask, is_causal=True)
    mask = torch.zeros(1, 1, 9, 70)
    mask[..., :4] = torch.finfo(FP32).min
    # Rows 1 to 3 see several keys, each masked by the lowest number.
    check(q, k, v, mask, is_causal=True)


def test_blocks_that_a_mask_leaves_as_they_are():
    """All keys seen and nothing added: no mask is read, and the bits are those of one that is."""
    q, k, v = inputs(1, 2, 1, 3, 330, 8, 8, BF16)
    ends = torch.tensor([330, 200, 131])[:, None]
    mask = (torch.arange(330) < ends)[None, None]
    whole = check(q, k, v, mask)
    zeros = torch.where(mask, 0.0, -INF)
    assert_same_bits(check(q, k, v, zeros).contiguous(), whole.contiguous())
    zeros[..., 130:] += torch.randn(200)
    check(q, k, v, zeros)
    for i, end in enumerate(ends.flatten().tolist()):
        row = gpu.attention(q[:, :, i : i + 1], k[:, :, :end], v[:, :, :end], None, False, 0.3)[0]
        assert_same_bits(row.contiguous(), whole[:, :, i : i + 1].contiguous(), f"query {i}")


@pytest.mark.parametrize("scale", [0.0, -0.3, 2.0**-30, 2.0**40])
def test_scales_that_stay_out_of_the_exponent(scale):
    q, k, v = inputs(1, 1, 1, 3, 70, 8, 8)
    for mask in (None, masks(1, 3, 70)["added"]):
        found, _ = gpu.attention(q, k, v, mask, False, scale)
        expected, _ = gpu_oracle.attention(q, k, v, mask, False, scale)
        assert_same_bits(found.contiguous(), expected.contiguous())


def test_tensor_maps_read_what_pointers_read(monkeypatch):
    q, k, v = inputs(2, 4, 2, 40, 130, 16, 24, BF16)
    plain = [gpu.attention(q, k, v, None, causal, 0.3)[0] for causal in (False, True)]
    monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x: True)
    used = []
    stock = gpu.tensor_maps
    monkeypatch.setattr(gpu, "tensor_maps", lambda *a: used.append(a) or stock(*a))
    for causal, expected in zip((False, True), plain, strict=True):
        assert_same_bits(gpu.attention(q, k, v, None, causal, 0.3)[0].contiguous(), expected.contiguous())
    assert len(used) == 4
    odd = torch.cat([k, k], 3)[..., 1:17]
    found = gpu.attention(q, odd, v, None, False, 0.3)[0]
    assert len(used) == 6, "no map can describe this tensor, but its copy"
    assert_same_bits(found, gpu.attention(q, odd.contiguous(), v, None, False, 0.3)[0])
    gpu.attention(q, k[:1].expand(2, -1, -1, -1), v, None, False, 0.3)
    assert len(used) == 8, "a tensor that no map can describe"


@pytest.mark.parametrize("kind", ["boolean", "added", "causal"])
@pytest.mark.parametrize("garbage", [NAN, INF])
def test_a_masked_key_is_never_seen(kind, garbage):
    q, k, v = inputs(1, 1, 1, 4, 70, 16, 16)
    mask = torch.ones(1, 1, 4, 70, dtype=torch.bool).tril(60)
    mask[..., 3] = False
    if kind == "added":
        mask = torch.where(mask, 0.0, torch.finfo(FP32).min)
    mask = None if kind == "causal" else mask
    poisoned = [x.clone() for x in (k, v)]
    for x in poisoned:
        x[:, :, [4, 64, 69] if kind == "causal" else [3, 65, 69]] = garbage
    clean = check(q, k, v, mask, kind == "causal")
    if kind == "causal":
        found, _ = gpu.attention(q, *poisoned, None, True, 0.3)
        assert_same_bits(found.contiguous(), clean.contiguous())
    else:
        found, _ = gpu.attention(q, *poisoned, mask, False, 0.3)
        assert_same_bits(found[:, :, :1].contiguous(), clean[:, :, :1].contiguous())
        # Key 65 is seen from query 5 on, key 69 by none of these.
        assert found[:, :, :1].isfinite().all()


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.usefixtures("parallel")
def test_what_is_infinite_is_done_again_by_pieces(dtype):
    q, k, v = inputs(1, 2, 1, 3, 270, 40, 72, dtype)
    mask = torch.ones(1, 1, 3, 270, dtype=torch.bool).tril(260)
    mask[..., 7] = False
    clean = check(q, k, v, mask)
    v[:, :, 7], v[:, :, 269] = INF, NAN
    v[:, :, 5, 70] = -INF
    found, _ = gpu.attention(q, k, v, mask, False, 0.3)
    assert (found[..., 70] == -INF).all()
    others = torch.arange(72) != 70
    assert_same_bits(found[..., others].contiguous(), clean[..., others].contiguous(), "other columns")


def test_what_is_seen_is_seen():
    q, k, v = inputs(1, 1, 1, 2, 70, 16, 16)
    v[0, 0, 5, 0], v[0, 0, 6, 1], v[0, 0, 7, 2] = NAN, INF, -INF
    mask = torch.ones(1, 1, 2, 70, dtype=torch.bool)
    mask[0, 0, 1, 5:8] = False
    found, _ = gpu.attention(q, k, v, mask, False, 0.3)
    assert found[0, 0, 0, 0].isnan()
    assert found[0, 0, 0, 1:3].tolist() == [INF, -INF]
    assert found[0, 0, 1].isfinite().all()


def test_a_mask_of_the_lowest_number_leaves_nothing_of_what_it_masked():
    """The first keys hold NaN and are masked by a number: later ones must find nothing of them."""
    q, k, v = inputs(1, 1, 1, 2, 130, 16, 16)
    mask = torch.zeros(1, 1, 2, 130)
    mask[..., :64] = torch.finfo(FP32).min
    clean = check(q, k, v, mask)
    k[:, :, :64], v[:, :, :64] = NAN, NAN
    assert_same_bits(gpu.attention(q, k, v, mask, False, 0.3)[0].contiguous(), clean.contiguous())


def test_no_keys():
    q, k, v = inputs(1, 1, 1, 2, 0, 16, 16)
    found, lse = gpu.attention(q, k, v, None, False, 0.3)
    assert (found == 0).all()
    assert (lse == -INF).all()


def far_apart(x):
    """x [B, H, ...] with heads 2**30 numbers from each other; what is between is never touched."""
    stride = 2**30
    storage = torch.empty((x.shape[1] - 1) * stride + x[0, 0].numel(), dtype=x.dtype)
    spread = storage.as_strided(x.shape, (x.stride(0), stride, *x.stride()[2:]))
    return spread.copy_(x)


def test_heads_that_are_far_apart(monkeypatch):
    """Offsets beyond 2**31, as of a mask of 32 heads over more than 8,192 keys."""
    q, k, v = inputs(1, 3, 1, 5, 70, 16, 16, BF16)
    check(far_apart(q), k, v)
    stock = gpu.ReadMask.of
    monkeypatch.setattr(
        gpu.ReadMask, "of", lambda *given: (read := stock(*given))._replace(values=far_apart(read.values))
    )
    check(q, k, v, masks(1, 5, 70)["added"].to(BF16).expand(1, 3, 5, 70).contiguous())
