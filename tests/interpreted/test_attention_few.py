"""Attention of few queries without a mask, as in decoding, in the interpreter: walks of their own."""

import pytest

from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.attention_matrix import Chosen
from tests.interpreted.chain import chain
from tests.interpreted.test_attention import BF16, FP16, INF, NAN, check, inputs, parallel  # noqa: F401

from bi_compile.templates.attention import gpu  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _chains():
    interpreter.use_dot(chain)


@pytest.mark.usefixtures("parallel")
@pytest.mark.parametrize("blocks", [1, 2])
def test_few_rows_have_a_walk_of_their_own(blocks, monkeypatch):
    """Of two blocks in a step the second may be partly there or not at all, and rows may end before it."""
    monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x: True)
    tiles = []
    stock = gpu.Tile.of_few
    one = gpu.Tile(8, 1, 1, few=1)
    monkeypatch.setattr(
        gpu.Tile, "of_few", lambda *a: tiles.append(one if blocks == 1 else stock(*a)) or tiles[-1]
    )
    check(*inputs(1, 2, 1, 3, 130, 8, 16, BF16), is_causal=True)
    check(*inputs(1, 4, 2, 1, 600, 16, 24, FP16), softcap=2.0)
    check(*inputs(1, 2, 1, 4, 257, 16, 16, BF16))
    check(*inputs(1, 2, 2, 1, 64, 24, 16, BF16), is_causal=True)
    # Of this many rows some show how their sums were rounded.
    check(*inputs(4, 16, 4, 2, 250, 16, 16, BF16))
    assert {tile.few for tile in tiles} == {blocks}
    assert len(tiles) == 5


def test_large_heads_have_no_memory_for_two_steps_of_few_rows(monkeypatch):
    monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x: True)
    check(*inputs(1, 1, 1, 1, 300, 256, 256, BF16))


@pytest.mark.usefixtures("parallel")
@pytest.mark.parametrize("keys", [600, 3073])
def test_short_splits_by_twos(keys, monkeypatch):
    """Alone where most are short; else by twos, though causal rows end within the first."""
    monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x: True)
    monkeypatch.setattr(gpu.Tile, "of_few", lambda *a: gpu.Tile(8, 1, 1, few=1))
    launched = []
    monkeypatch.setattr(
        gpu, "attend", Chosen(gpu.attend, lambda given: launched.append(given["PAIRED"]) or True)
    )
    # The interpreter takes no NaN of bf16 for one.
    q, k, v = inputs(1, 2, 1, 2, keys, 16, 16, FP16)
    check(q, k, v)
    clean = check(q, k, v, is_causal=True)
    v[:, :, 1:] = NAN
    found, _ = gpu.attention(q, k, v, None, True, 0.3)
    assert_same_bits(found[:, :, :1].contiguous(), clean[:, :, :1].contiguous(), "the first query")
    assert found[:, :, 1:].isnan().all()
    assert launched == [keys > 3072, *[keys > 3072, False] * 2]


def test_which_walk_few_rows_have():
    """By the number of programs of an H200 with 132 multiprocessors."""
    memory = 227 * 2**10
    for dims, heads, splits, expected in (
        (256, 8, 4, (2, 2, 3)),
        (256, 8, 18, (2, 2, 2)),
        (256, 256, 4, (2, 2, 2)),
        (256, 256, 6, (1, 1, 1)),
        (256, 64, 10, (2, 2, 2)),
        (256, 64, 18, (1, 1, 1)),
        (256, 1024, 1, (1, 1, 1)),
        (512, 64, 18, None),
    ):
        tile = gpu.Tile.of_few(dims, heads, splits, 132, memory)
        assert expected == (tile and (tile.few, tile.warps, tile.stages)), (dims, heads, splits)


def test_few_rows_that_met_something_infinite(monkeypatch):
    monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x: True)
    q, k, v = inputs(1, 2, 1, 3, 140, 16, 16, BF16)
    clean = check(q, k, v, is_causal=True)
    v[:, :, 2], v[:, :, 3:] = INF, NAN
    found, _ = gpu.attention(q, k, v, None, True, 0.3)
    assert_same_bits(found[:, :, :2].contiguous(), clean[:, :, :2].contiguous())
    assert (found[:, :, 2] == INF).all()


def test_a_decoded_query_is_its_row_of_the_prefill(monkeypatch):
    q, k, v = inputs(1, 2, 1, 40, 70, 16, 16, BF16)
    whole = check(q, k, v, is_causal=True)
    monkeypatch.setattr(gpu.Tile, "choose", lambda *a: gpu.Tile(64, 8, 2))
    assert_same_bits(gpu.attention(q, k, v, None, True, 0.3)[0].contiguous(), whole.contiguous(), "tile")
    for i in (0, 17, 39):
        row = gpu.attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], None, False, 0.3)[0]
        assert_same_bits(row.contiguous(), whole[:, :, i : i + 1].contiguous(), f"query {i}")
