"""Attention on large heads, whose weights meet their values one block later: the bits of the oracle."""

import dataclasses

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.attention_matrix import Chosen
from tests.interpreted.chain import chain
from tests.interpreted.test_attention import BF16, FP16, INF, NAN, check, inputs

from bi_compile.templates.attention import gpu  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
LATE = gpu.Tile(16, 8, 2, kept=32, late=True)


@pytest.fixture(autouse=True)
def _chains():
    interpreter.use_dot(chain)


@pytest.fixture(autouse=True)
def late(monkeypatch):
    """Small heads as if they were large; whether each launch came late."""
    seen = []
    monkeypatch.setattr(gpu, "_has_tensor_maps", lambda x: True)
    monkeypatch.setattr(gpu, "attend", Chosen(gpu.attend, lambda given: seen.append(given["LATE"]) or True))
    monkeypatch.setattr(gpu.Tile, "choose", lambda *a: LATE)
    return seen


@pytest.mark.parametrize("keys", [257, 320, 321, 512, 513, 832, 1025, 1100])
def test_splits_of_every_length(keys, late):
    """The last block begins a split, ends one, is one key or has all of them."""
    check(*inputs(1, 1, 1, 17, keys, 16, 64, BF16, seed=keys))
    assert late == [True]


def test_causal(late):
    """Queries of a tile end at keys of their own; tiles of one block, of one split and of several."""
    q, k, v = inputs(1, 3, 1, 270, 270, 16, 64, FP16)
    check(q[:, :, 240:], k, v)
    check(q, k[:, :, :260], v[:, :, :260], is_causal=True)
    assert late == [True, True, False], "what is not finite is looked for in causal ones"
    q, k, v = inputs(1, 1, 1, 340, 340, 16, 64, BF16)
    whole = check(q, k, v, is_causal=True)
    for i in (0, 63, 64, 255, 256, 319, 320, 339):
        row, _ = gpu.attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], None, False, 0.3)
        assert_same_bits(row.contiguous(), whole[:, :, i : i + 1].contiguous(), f"query {i}")


@pytest.mark.parametrize("kept", [0, 32, 64])
def test_how_much_of_the_sum_is_held(kept, late, monkeypatch):
    monkeypatch.setattr(gpu.Tile, "choose", lambda *a: dataclasses.replace(LATE, kept=kept))
    check(*inputs(1, 1, 1, 17, 1100, 16, 64, BF16))
    assert late == [kept < 64], "without a sum in memory, by the other walk"


def test_what_it_does_not_do(late, monkeypatch):
    """One split, splits in parallel, masks, softcaps, negative scales and heads in two tiles."""
    q, k, v = inputs(1, 1, 1, 17, 600, 16, 64, BF16)
    check(q, k[:, :, :200], v[:, :, :200])
    check(q, k, v, torch.rand(1, 1, 17, 600) > 0.3)
    check(q, k, v, softcap=2.0)
    check(*inputs(1, 1, 1, 17, 600, 72, 64, BF16))
    check(*inputs(1, 1, 1, 17, 600, 16, 80, BF16))
    gpu.attention(q, k, v, None, False, -0.3)
    monkeypatch.setattr(gpu, "_multiprocessors", lambda x: 1000)
    check(q, k, v)
    assert not any(late)


@pytest.mark.parametrize("garbage", [NAN, INF])
def test_what_is_not_finite(garbage, late):
    """Before the first block no values are met, and after the last one no keys."""
    q, k, v = inputs(1, 1, 1, 270, 270, 16, 64, FP16)
    clean = gpu.attention(q, k, v, None, True, 0.3)[0]
    v[:, :, 265:] = garbage
    found = gpu.attention(q, k, v, None, True, 0.3)[0]
    assert_same_bits(found[:, :, :265].contiguous(), clean[:, :, :265].contiguous())
    assert not torch.isfinite(found[:, :, 265:]).any()
    assert late[:2] == [True, False]
    v[:, :, 265:], v[:, :, 0, 3] = 0.5, INF
    found = gpu.attention(q[:, :, :20], k, v, None, False, 0.3)[0]
    assert (found[..., 3] == INF).all()
    assert torch.isfinite(found[..., :3]).all()
