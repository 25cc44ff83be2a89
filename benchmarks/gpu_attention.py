"""Attention on a CUDA device against PyTorch's SDPA: `python benchmarks/gpu_attention.py [--quick]`.

Prefill (causal) and decode of 32 query heads over 8 kv heads of size 128 in bf16, as in Qwen3-8B; then the
prefill of 8,192 tokens with masks, and with heads of other sizes.
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


def operands(batch: int, queries: int, keys: int, size: int = SIZE) -> list[torch.Tensor]:
    shapes = ((batch, HEADS, queries, size), (batch, KV_HEADS, keys, size), (batch, KV_HEADS, keys, size))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]


def masks(keys: int) -> dict[str, torch.Tensor]:
    """Causal ones, by booleans, by numbers and with a bias; the last 1,024 keys alone."""
    causal = torch.ones(1, 1, keys, keys, dtype=torch.bool, device="cuda").tril()
    numbers = torch.zeros(causal.shape, dtype=torch.bfloat16, device="cuda").masked_fill_(~causal, -torch.inf)
    return {
        "boolean": causal,
        "numbers": numbers,
        "bias": numbers + torch.randn_like(numbers),
        "window": causal & ~causal.tril(-1024),
    }


@torch.inference_mode()
def main() -> None:
    import bi_compile.backend  # noqa: F401  (defines the ops)

    op = torch.ops.bi_compile.attention
    print(machine())
    print(f"{'':8} {'batch':>6} {'keys':>6} {'ours us':>9} {'SDPA us':>9} {'ratio':>6}")

    def row(
        name: str, batch: int, keys: int, of: list[torch.Tensor], mask=None, causal: bool = False
    ) -> None:
        a, b, ratio = compare(
            lambda: op(*of, mask, causal, of[0].shape[3] ** -0.5),
            lambda: F.scaled_dot_product_attention(*of, attn_mask=mask, is_causal=causal, enable_gqa=True),
        )
        print(f"{name:8} {batch:6} {keys:6} {a:9.1f} {b:9.1f} {ratio:6.2f}", flush=True)

    for batch, keys in PREFILL:
        row("prefill", batch, keys, operands(batch, keys, keys), causal=True)
    for batch, keys in DECODE:
        row("decode", batch, keys, operands(batch, 1, keys))
    for name, mask in masks(8192).items():
        row(name, 1, 8192, operands(1, 8192, 8192), mask)
    for size in () if QUICK else (64, 256):
        row(f"size {size}", 1, 8192, operands(1, 8192, 8192, size), causal=True)


if __name__ == "__main__":
    main()
