"""Attention on a CUDA device against PyTorch's SDPA: `python benchmarks/gpu_attention.py [--quick]`.

Prefill (causal) and decode of 32 query heads over 8 kv heads of size 128 in bf16, as in Qwen3-8B.
"""

import sys

import torch
import torch.nn.functional as F
from gpu_timing import compare, machine

QUICK = "--quick" in sys.argv
HEADS, KV_HEADS, SIZE = 32, 8, 128
PREFILL = (
    ((1, 1024), (1, 8192)) if QUICK else ((1, 512), (1, 1024), (1, 2048), (1, 4096), (1, 8192), (8, 1024))
)
DECODE = (
    ((1, 1024), (1, 8192), (64, 1024))
    if QUICK
    else tuple((b, keys) for b in (1, 8, 64, 256) for keys in (1024, 4096, 8192) if b * keys <= 64 * 8192)
)


def operands(batch: int, queries: int, keys: int) -> list[torch.Tensor]:
    shapes = ((batch, HEADS, queries, SIZE), (batch, KV_HEADS, keys, SIZE), (batch, KV_HEADS, keys, SIZE))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]


@torch.inference_mode()
def main() -> None:
    import bi_compile.backend  # noqa: F401  (defines the ops)

    op, scale = torch.ops.bi_compile.attention, SIZE**-0.5
    print(machine())
    print(f"{'':8} {'batch':>6} {'keys':>6} {'ours us':>9} {'SDPA us':>9} {'ratio':>6}")
    for name, sizes in (("prefill", PREFILL), ("decode", DECODE)):
        for batch, keys in sizes:
            causal = name == "prefill"
            q, k, v = operands(batch, keys if causal else 1, keys)
            a, b, ratio = compare(
                lambda q=q, k=k, v=v, c=causal: op(q, k, v, None, c, scale),
                lambda q=q, k=k, v=v, c=causal: F.scaled_dot_product_attention(
                    q, k, v, is_causal=c, enable_gqa=True
                ),
            )
            print(f"{name:8} {batch:6} {keys:6} {a:9.1f} {b:9.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
