"""CUDA graphs of a compiled transformer, Inductor's and one's own: the bits of the plain call."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

from tests.bits import assert_same_bits, order_sensitive

if torch.cuda.is_available():
    from bi_compile.templates.gpu import device

SIZES = (1, 5)
WIDTH, HEADS = 256, 4


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        met = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(met.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


@pytest.fixture
def transformer():
    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.LayerNorm(WIDTH)).to("cuda", torch.bfloat16).eval()
    yield model.requires_grad_(False)
    torch.compiler.reset()


@torch.no_grad()
def test_graphs_have_the_bits_of_plain_calls(transformer):
    # That stock's products change with the number of rows is in test_contraction.
    x = (order_sensitive(5, 48, WIDTH) / 256).to("cuda", torch.bfloat16)
    plain = torch.compile(transformer, backend="batch_invariant")
    expected = {size: plain(x[:size]) for size in SIZES}
    assert_same_bits(expected[1][0], expected[5][0], "alone")
    truth = transformer.double()(x.double())
    transformer.to(torch.bfloat16)
    error = (expected[5].double() - truth).abs().mean() / truth.abs().mean()
    assert error <= 0.02

    counters.clear()
    fast = torch.compile(transformer, backend="batch_invariant", mode="reduce-overhead")
    for _ in range(3):  # warms up, records, replays
        for size in SIZES:
            torch.compiler.cudagraph_mark_step_begin()
            assert_same_bits(fast(x[:size].clone()), expected[size], f"reduce-overhead {size}")
    assert counters["inductor"]["cudagraph_skips"] == 0

    for size in SIZES:
        given = torch.zeros_like(x[:size])
        graph = torch.cuda.CUDAGraph()
        plain(given)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            found = plain(given)
        given.copy_(x[:size])
        for _ in range(2):
            found.fill_(torch.nan)
            graph.replay()
            assert_same_bits(found, expected[size], f"captured {size}")


def test_the_driver_tells_its_version():
    """By which it is decided whether kernels overlap."""
    major, minor = device.driver_version()
    assert (11, 0) <= (major, minor) < (100, 0)
