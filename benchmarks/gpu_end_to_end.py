"""A model of Qwen3-8B's shape with random weights on a CUDA device: ours against stock `torch.compile`.

`python benchmarks/gpu_end_to_end.py [--layers 36]`: a decoding step at batch 1, 8, 64 and 256 over a cache
of 1,024 tokens, and the prefill of 1 x 8192, bf16. Both run as CUDA graphs. Fewer layers compile sooner;
the time of a layer is what is left after the last matrix product.
"""

import argparse

import torch
import torch.nn.functional as F
from gpu_timing import compare, machine
from torch import nn

import bi_compile

HIDDEN, HEADS, KV_HEADS, SIZE, INNER, VOCABULARY = 4096, 32, 8, 128, 12288, 151936


def linear(inputs: int, outputs: int) -> nn.Parameter:
    weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) * inputs**-0.5
    return nn.Parameter(weight, requires_grad=False)


def norm(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, device="cuda", dtype=torch.bfloat16), requires_grad=False)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = linear(HIDDEN, (HEADS + 2 * KV_HEADS) * SIZE)
        self.o = linear(HEADS * SIZE, HIDDEN)
        self.gate, self.up, self.down = linear(HIDDEN, INNER), linear(HIDDEN, INNER), linear(INNER, HIDDEN)
        self.norm_1, self.norm_2 = norm(HIDDEN), norm(HIDDEN)
        self.q_norm, self.k_norm = norm(SIZE), norm(SIZE)

    def forward(self, x, cos, sin, keys, values):
        batch, length, _ = x.shape
        h = F.linear(F.rms_norm(x, (HIDDEN,), self.norm_1, 1e-6), self.qkv)
        q, k, v = h.view(batch, length, -1, SIZE).transpose(1, 2).split([HEADS, KV_HEADS, KV_HEADS], 1)
        q = rotated(F.rms_norm(q, (SIZE,), self.q_norm, 1e-6), cos, sin)
        k = rotated(F.rms_norm(k, (SIZE,), self.k_norm, 1e-6), cos, sin)
        if keys is not None:
            # The newest token takes the last place of the cache.
            keys[:, :, -1:], values[:, :, -1:] = k, v
            k, v = keys, values
        h = F.scaled_dot_product_attention(q, k, v, is_causal=keys is None, enable_gqa=True)
        x = x + F.linear(h.transpose(1, 2).reshape(batch, length, -1), self.o)
        h = F.rms_norm(x, (HIDDEN,), self.norm_2, 1e-6)
        return x + F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Model(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = linear(HIDDEN, VOCABULARY)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = norm(HIDDEN)

    def forward(self, ids, cos, sin, cache=None):
        x = F.embedding(ids, self.embedding)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, *(cache[i] if cache else (None, None)))
        return F.linear(F.rms_norm(x[:, -1], (HIDDEN,), self.norm, 1e-6), self.embedding)


def angles(first: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = 1e6 ** -(torch.arange(0, SIZE, 2, device="cuda") / SIZE)
    angle = torch.outer(torch.arange(first, first + length, device="cuda"), frequency).repeat(1, 2)
    return angle.cos().bfloat16(), angle.sin().bfloat16()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64, 256])
    parser.add_argument("--prefill", type=int, nargs="*", default=[8192])
    given = parser.parse_args()
    model = Model(given.layers)
    print(f"{machine()}; {given.layers} layers")
    print(f"{'':8} {'batch':>6} {'tokens':>7} {'ours ms':>9} {'stock ms':>9} {'ratio':>6}")
    cases = [("decode", batch, 1) for batch in given.batches] + [("prefill", 1, n) for n in given.prefill]
    for name, batch, length in cases:
        cache = None
        if name == "decode":
            shape = (2, batch, KV_HEADS, 1024, SIZE)
            cache = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).unbind(0) for _ in model.layers]
        ids = torch.randint(VOCABULARY, (batch, length), device="cuda")
        inputs = (ids, *angles(1023 if cache else 0, length), cache)
        for shared in inputs[1:3]:
            bi_compile.mark_batch(shared, None)
        torch.compiler.reset()
        ours = torch.compile(model, backend="batch_invariant", dynamic=False)
        stock = torch.compile(model, dynamic=False)
        a, b, ratio = compare(lambda f=ours, i=inputs: f(*i), lambda f=stock, i=inputs: f(*i))
        print(f"{name:8} {batch:6} {length:7} {a / 1e3:9.3f} {b / 1e3:9.3f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
