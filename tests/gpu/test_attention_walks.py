"""The walks that decoding and large heads have of their own on a CUDA device have the bits of the others."""

import dataclasses

import pytest
import torch

from tests.bits import assert_same_bits, same_bits
from tests.gpu.test_attention import INF, LOW, inputs, run
from tests.interpreted.attention_matrix import Chosen

if torch.cuda.is_available():
    from bi_compile.templates.attention import gpu


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
