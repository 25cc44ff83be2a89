"""PyTorch's encoder layers in eval mode, whose inference is one op: the bits of their other path."""

import pytest
import torch
from torch import nn

import bi_compile
from bi_compile.eager_mode import OutsideGraphs
from tests.bits import assert_same_bits, same_bits

LAYERS = {
    "layer": lambda: nn.TransformerEncoderLayer(16, 2, 24, batch_first=True),
    "norm first, gelu": lambda: nn.TransformerEncoderLayer(
        16, 4, 24, batch_first=True, norm_first=True, activation="gelu"
    ),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2),
    "attention": lambda: nn.MultiheadAttention(16, 2, batch_first=True),
}
PADDED = torch.arange(131) >= torch.tensor([131, 7, 1, 130, 70])[:, None]
MASKS = {
    "none": lambda i: {},
    "keys": lambda i: {"key_padding_mask": PADDED[i]},
    "pairs": lambda i: {"attn_mask": nn.Transformer.generate_square_subsequent_mask(131)},
    "both": lambda i: {
        "key_padding_mask": PADDED[i],
        "attn_mask": torch.ones(131, 131, dtype=torch.bool).triu(1),
    },
}


def caller(name, dtype):
    torch.manual_seed(0)
    module = LAYERS[name]().eval().requires_grad_(False).to(dtype)

    def call(x, key_padding_mask=None, attn_mask=None):
        if isinstance(module, nn.MultiheadAttention):
            return module(x, x, x, key_padding_mask, need_weights=False, attn_mask=attn_mask)[0]
        pairs = {"mask" if isinstance(module, nn.TransformerEncoder) else "src_mask": attn_mask}
        return module(x, src_key_padding_mask=key_padding_mask, **pairs)

    return module, call


@pytest.mark.parametrize("mask", ["none", "keys", "pairs", "both", "both, bf16"])
@pytest.mark.parametrize("name", LAYERS)
def test_in_any_batch(name, mask):
    torch.compiler.reset()
    dtype = torch.bfloat16 if "bf16" in mask else torch.float32
    mask = mask.removesuffix(", bf16")
    module, call = caller(name, dtype)
    x = torch.randn(5, 131, 16).to(dtype)
    every = torch.arange(5)
    with bi_compile.eager():
        want = call(x, **MASKS[mask](every))
    shared = {"attn_mask"} & MASKS[mask](every).keys()
    compiled = torch.compile(call, backend="batch_invariant", fullgraph=True)
    for i in (every, every[1:2], every[2:4]):
        given = MASKS[mask](i)
        for key in shared:
            bi_compile.mark_batch(given[key], None)
        assert_same_bits(compiled(x[i], **given), want[i])
    with OutsideGraphs():
        assert_same_bits(call(x, **MASKS[mask](every)), want)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        stock = call(x, **MASKS[mask](every))
        module.double()
        exact = call(x.double(), **MASKS[mask](every))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    errors = [(y.double() - exact).square().mean().sqrt() for y in (want, stock)]
    assert errors[0] <= 1.5 * errors[1]


def test_control_stock_changes_with_the_batch():
    module = nn.TransformerEncoderLayer(320, 2, 24, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(5, 1, 320)  # of one token: longer ones show no batch on some processors
    assert not all(same_bits(module(x)[i : i + 1], module(x[i : i + 1])) for i in range(5))
