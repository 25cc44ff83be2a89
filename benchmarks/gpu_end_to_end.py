"""A model of Qwen3-8B's shape with random weights on a CUDA device: ours against stock `torch.compile`.

`python benchmarks/gpu_end_to_end.py [--layers 36]`: a decoding step at batch 1, 8, 64 and 256 over a cache
of 1,024 tokens, and the prefill of 1 x 8192, bf16, as CUDA graphs. A third arm, "fixed", is stock but for its
products, which have one configuration whatever the number of rows. All layers share one compilation: a layer
begins with the addition that the one before would end in, so that nothing is left unfused between them.
"""

import argparse
import functools
import statistics

import torch
import torch.nn.functional as F
from gpu_timing import in_turns, machine
from torch import nn

import bi_compile

HIDDEN, HEADS, KV_HEADS, SIZE, INNER, VOCABULARY = 4096, 32, 8, 128, 12288, 151936


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def linear(inputs: int, outputs: int) -> nn.Parameter:
    return nn.Parameter(randn(outputs, inputs) * inputs**-0.5, requires_grad=False)


def norm(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, device="cuda", dtype=torch.bfloat16), requires_grad=False)


@torch.library.custom_op("benchmark::fixed_linear", mutates_args=())
def fixed_linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Products in one configuration for every number of rows: a usual way to make them batch-invariant."""
    from bi_compile.templates.contraction import gpu

    config = gpu.Config(block_m=128, block_n=128, block_k=64, warps=8, stages=3)
    return gpu.product(x.reshape(-1, x.shape[-1]), w.t(), config=config).view(*x.shape[:-1], -1)


@fixed_linear.register_fake
def _(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], w.shape[0])


ARMS = {
    "ours": ({"backend": "batch_invariant"}, F.linear),
    "stock": ({}, F.linear),
    "fixed": ({}, fixed_linear),
}
"""Arm -> options of torch.compile, and what multiplies rows by a weight."""


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = linear(HIDDEN, (HEADS + 2 * KV_HEADS) * SIZE)
        self.o = linear(HEADS * SIZE, HIDDEN)
        self.gate, self.up, self.down = linear(HIDDEN, INNER), linear(HIDDEN, INNER), linear(INNER, HIDDEN)
        self.norm_1, self.norm_2 = norm(HIDDEN), norm(HIDDEN)
        self.q_norm, self.k_norm = norm(SIZE), norm(SIZE)

    def forward(self, product, h, x, cos, sin, keys, values):
        """What this layer adds to the residual stream, and the stream: x and what the last layer adds, h."""
        batch, length, _ = x.shape
        x = x + h
        h = product(F.rms_norm(x, (HIDDEN,), self.norm_1, 1e-6), self.qkv)
        q, k, v = h.view(batch, length, -1, SIZE).transpose(1, 2).split([HEADS, KV_HEADS, KV_HEADS], 1)
        q = rotated(F.rms_norm(q, (SIZE,), self.q_norm, 1e-6), cos, sin)
        k = rotated(F.rms_norm(k, (SIZE,), self.k_norm, 1e-6), cos, sin)
        if keys is not None:
            # The newest token takes the last place of the cache.
            keys[:, :, -1:], values[:, :, -1:] = k, v
            k, v = keys, values
        h = F.scaled_dot_product_attention(q, k, v, is_causal=keys is None, enable_gqa=True)
        x = x + product(h.transpose(1, 2).reshape(batch, length, -1), self.o)
        h = F.rms_norm(x, (HIDDEN,), self.norm_2, 1e-6)
        return product(F.silu(product(h, self.gate)) * product(h, self.up), self.down), x


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Model(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = linear(HIDDEN, VOCABULARY)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = norm(HIDDEN)

    def forward(self, functions, ids, cos, sin, cache):
        """Logits of the last token; functions: what runs a layer, and what comes after the last."""
        layer, last = functions
        h = F.embedding(ids, self.embedding)
        x = torch.zeros_like(h)
        for i, own in enumerate(self.layers):
            h, x = layer(own, h, x, cos, sin, *(cache[i] if cache else (None, None)))
        return last(self, h[:, -1], x[:, -1])


def compiled(product, **options) -> tuple:
    def layer(own, *inputs):
        return own(product, *inputs)

    def last(model, h, x):
        return product(F.rms_norm(x + h, (HIDDEN,), model.norm, 1e-6), model.embedding)

    return tuple(torch.compile(function, dynamic=False, **options) for function in (layer, last))


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
    torch.manual_seed(0)
    model = Model(given.layers)
    most = max(given.batches, default=1)
    caches = [[randn(most, KV_HEADS, 1024, SIZE) for _ in range(2)] for _ in model.layers]
    tokens = torch.randint(VOCABULARY, (max(most, *given.prefill, 1),), device="cuda")
    print(f"{machine()}; {given.layers} layers")
    columns = " ".join(f"{arm + ' ms':>9}" for arm in ARMS)
    print(f"{'':8} {'batch':>6} {'tokens':>7} {columns} {'ours / stock':>13}")
    first: dict[str, list[torch.Tensor]] = {arm: [] for arm in ARMS}
    cases = [("decode", batch, 1) for batch in given.batches] + [("prefill", 1, n) for n in given.prefill]
    for name, batch, length in cases:
        cache, ids = None, tokens[:length].view(1, -1)
        if name == "decode":
            cache, ids = [[part[:batch] for part in both] for both in caches], tokens[:batch].view(-1, 1)
        inputs = (ids, *angles(1023 if cache else 0, length), cache)
        for shared in inputs[1:3]:
            bi_compile.mark_batch(shared, None)
        torch.compiler.reset()
        calls = [
            functools.partial(model, compiled(product, **options), *inputs)
            for options, product in ARMS.values()
        ]
        for arm, call in zip(ARMS, calls, strict=True):
            logits = call()
            if cache:
                first[arm].append(logits[0].clone())
        times = [statistics.median(of_one) / 1e3 for of_one in in_turns(*calls)]
        row = " ".join(f"{time:9.3f}" for time in times)
        print(f"{name:8} {batch:6} {length:7} {row} {times[0] / times[1]:13.2f}", flush=True)
    for arm, found in first.items():
        same = all(torch.equal(logits, found[0]) for logits in found)
        pairs = zip(found, first["stock"], strict=True)
        far = max((a.float() - b.float()).abs().max().item() for a, b in pairs)
        verdict = "has the same bits" if same else "differs"
        print(f"{arm}: sample 0 {verdict} in all batches of decoding; at most {far:.3g} from stock")


if __name__ == "__main__":
    main()
