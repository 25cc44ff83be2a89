"""Grouped products on a CUDA device against PyTorch's: a projection of a mixture of experts, bf16.

`python benchmarks/gpu_grouped.py`: Qwen3-30B-A3B's 128 experts and Mixtral's 8, tokens routed at random, as
CUDA graphs. Under two minutes.
"""

import functools

import torch
from gpu_timing import compare, machine

# name: experts, experts of a token, inputs, outputs
LAYERS = {
    "Qwen3 gate and up": (128, 8, 2048, 1536),
    "Qwen3 down": (128, 8, 768, 2048),
    "Mixtral gate and up": (8, 2, 4096, 28672),
    "Mixtral down": (8, 2, 14336, 4096),
}


@torch.inference_mode()
def main() -> None:
    import bi_compile.backend  # noqa: F401  (defines the ops)

    print(machine())
    print(f"{'layer':20} {'tokens':>6} {'ours us':>9} {'stock us':>9} {'ratio':>6}")
    for name, (experts, chosen, k, n) in LAYERS.items():
        weights = torch.randn(experts, n, k, device="cuda", dtype=torch.bfloat16).mT
        for tokens in (1, 16, 64, 256, 1024, 4096):
            routed = torch.rand(tokens, experts, device="cuda").topk(chosen).indices.flatten()
            offs = torch.bincount(routed, minlength=experts).cumsum(0).int()
            x = torch.randn(tokens * chosen, k, device="cuda", dtype=torch.bfloat16)
            a, b, ratio = compare(
                functools.partial(torch.ops.bi_compile.grouped_mm, x, weights, offs),
                functools.partial(torch._grouped_mm, x, weights, offs=offs),
            )
            print(f"{name:20} {tokens:6} {a:9.1f} {b:9.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
