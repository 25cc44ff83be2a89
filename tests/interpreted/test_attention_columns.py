"""Attention on heads between powers of two, whose columns are multiplied in two tiles beside each other."""

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.chain import chain
from tests.interpreted.test_attention import BF16, FP16, INF, NAN, check, inputs, masks

from bi_compile.templates.attention import gpu, gpu_held, gpu_maps  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
HELD = gpu.Tile(16, 8, 2, kept=0)


@pytest.fixture(autouse=True)
def _chains():
    interpreter.use_dot(chain)


@pytest.fixture(autouse=True)
def rests(monkeypatch):
    """Through tensor maps; how many columns the second tiles have, of keys and of values in turns."""
    seen, stock = [], gpu.tensor_maps
    monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x: True)
    monkeypatch.setattr(gpu, "tensor_maps", lambda *a: seen.append(a[1].rest) or stock(*a))
    return seen


@pytest.mark.parametrize(
    ("size", "columns"),
    [
        *((size, (16,)) for size in (1, 16)),
        *((size, (32,)) for size in (17, 24, 32)),
        *((size, (64,)) for size in (33, 48, 64)),
        *((size, (64, 16)) for size in (65, 72, 80)),
        *((size, (64, 32)) for size in (81, 96)),
        *((size, (128,)) for size in (97, 104, 128)),
        *((size, (128, 16)) for size in (136, 144)),
        *((size, (128, 32)) for size in (152, 160)),
        *((size, (128, 64)) for size in (168, 192)),
        *((size, (256,)) for size in (200, 256)),
    ],
)
def test_columns_of_a_head(size, columns):
    assert gpu_maps.Columns.of(size) == gpu_maps.Columns(*columns)


@pytest.mark.parametrize(
    ("size", "value_size", "expected"),
    [(192, 128, (64, 0)), (192, 192, (64, 64)), (96, 72, (32, 16)), (80, 80, (16, 16)), (32, 72, (0, 16))],
)
def test_sizes(size, value_size, expected, rests):
    check(*inputs(1, 2, 1, 33, 70, size, value_size, BF16), is_causal=True)
    assert tuple(rests) == expected
    check(*inputs(1, 1, 1, 20, 65, size, value_size, FP16), softcap=2.0)


@pytest.mark.parametrize("name", ["boolean", "added", "infinite", "shared", "nothing"])
def test_masks(name, rests):
    q, k, v = inputs(2, 2, 1, 9, 140, 72, 80, BF16)
    check(q, k, v, masks(2, 9, 140)[name])
    assert rests[:2] == [16, 16]


@pytest.mark.parametrize("ways", [1, 1000])
def test_rows_that_begin_at_keys_of_their_own(ways, rests, monkeypatch):
    """A sliding window: by the kernel for rows that are apart, splits in sequence and in parallel."""
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: ways)
    q, k, v = inputs(1, 2, 1, 300, 300, 136, 72, BF16)
    q = q[:, :, 280:]
    key, query = torch.arange(300), torch.arange(280, 300)[:, None]
    window = ((key <= query) & (key > query - 270))[None, None]
    whole = check(q, k, v, window)
    check(q, k, v, torch.where(window, 0.0, -INF).to(BF16))
    assert rests == [16] * 8
    kept = slice(16, 286)
    row, _ = gpu.attention(q[:, :, 5:6], k[:, :, kept], v[:, :, kept], None, False, 0.3)
    assert_same_bits(row.contiguous(), whole[:, :, 5:6].contiguous(), "query 285 alone")


def test_rows_that_begin_at_keys_of_their_own_in_small_heads(rests):
    """They are multiplied in one tile where they are apart: two are no faster there."""
    q, k, v = inputs(1, 1, 1, 20, 90, 72, 80, BF16)
    window = (torch.arange(90) >= torch.arange(20)[:, None])[None, None]
    check(q, k, v, window)
    assert rests == [16, 16, 0, 0]


@pytest.mark.parametrize("kept", [0, 32, 64, 80])
def test_a_sum_that_is_held_in_memory(kept, monkeypatch):
    """Of the finished splits: all 80 columns, some of the first tile and the second, the second, and none."""
    held, stock = [], gpu_held.held_at
    monkeypatch.setattr(
        gpu_held, "held_at", lambda *a: held.append(getattr(a[2], "value", a[2])) or stock(*a)
    )
    monkeypatch.setattr(gpu.Tile, "choose", lambda *a: HELD if kept == 0 else gpu.Tile(16, 8, 2, kept=kept))
    check(*inputs(1, 2, 1, 10, 800, 16, 80, BF16))
    check(*inputs(1, 2, 1, 10, 800, 16, 80, BF16), masks(1, 10, 800)["added"])
    assert set(held) == {0: {32, 16}, 32: {32, 16}, 64: {16}, 80: set()}[kept]


def test_splits_in_parallel_and_few_rows(rests, monkeypatch):
    """Few rows have one tile where heads are small, and where they have a walk of their own."""
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: 1000)
    check(*inputs(1, 1, 1, 20, 600, 72, 80, BF16), is_causal=True)
    check(*inputs(1, 2, 1, 1, 600, 136, 136, BF16), masks(1, 1, 600)["boolean"])
    assert set(rests) == {16}
    del rests[:]
    check(*inputs(1, 2, 1, 1, 600, 72, 80, BF16), masks(1, 1, 600)["boolean"])
    check(*inputs(1, 2, 1, 1, 600, 136, 80, BF16))
    assert set(rests) == {0}


@pytest.mark.parametrize("ways", [1, 1000])
@pytest.mark.parametrize("garbage", [NAN, INF])
def test_what_is_not_finite(garbage, ways, monkeypatch):
    """In the second tile alone: of masked keys nothing is left, of others it is found. The interpreter takes
    no NaN of bf16 for one."""
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: ways)
    q, k, v = inputs(1, 2, 1, 20, 270, 72, 80, FP16)
    mask = torch.ones(1, 1, 20, 270, dtype=torch.bool).tril(250)
    mask[..., 7] = False
    clean = check(q, k, v, mask)
    v[:, :, 7, 72], v[:, :, 269, 79] = garbage, garbage
    found = gpu.attention(q, k, v, mask, False, 0.3)[0]
    assert_same_bits(found[:, :, :19].contiguous(), clean[:, :, :19].contiguous(), "rows that do not see it")
    last = found[:, :, 19]
    assert (last[..., 79].isnan() if garbage != garbage else last[..., 79] == INF).all()
    assert_same_bits(last[..., :79].contiguous(), clean[:, :, 19, :79].contiguous(), "other columns")
    k[:, :, 7, 70] = garbage
    assert_same_bits(
        gpu.attention(q, k, v, mask, False, 0.3)[0].contiguous(), found.contiguous(), "a masked key"
    )
