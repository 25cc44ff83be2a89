"""Speed of bi_compile::attention against stock scaled_dot_product_attention.

    python benchmarks/attention.py [--dtype float32 bfloat16] [--threads 1 2] [--keys 64 1024] [--quick]

Prints time of stock / time of ours for each cell: above 1 ours is faster. The two run in turns in one process
and each ratio is a median over the turns, so a noisy neighbour hits both.
"""

import argparse
import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from bi_compile.templates.attention import attention

WINDOW = 256
HEADS = ((8, 64), (8, 128))
"""Heads and head size, of decoders."""


def cells(keys: list[int]) -> Iterator[tuple[str, int, int, int, int, int, str]]:
    """(what, batch, heads, queries, keys, head size, mask)"""
    for heads, size in HEADS:
        for length in keys:
            yield "prefill", 1, heads, length, length, size, "none"
            yield "causal", 1, heads, length, length, size, "causal"
            yield "window", 1, heads, length, length, size, "window"
            for batch in (1, 16):
                yield "decode", batch, heads, 1, length, size, "none"
                yield "padded", batch, heads, 1, length, size, "left"
    for batch in (1, 8, 64):
        for mask in ("none", "bool", "additive"):
            yield "MiniLM", batch, 12, 64, 64, 32, mask


def pair(cell: tuple[str, int, int, int, int, int, str], dtype: torch.dtype) -> tuple[Callable, Callable]:
    _, batch, heads, queries, keys, size, mask_kind = cell
    # Heads as models have them: a view of [batch, length, heads * size].
    q, k, v = (torch.randn(batch, n, heads, size).to(dtype).transpose(1, 2) for n in (queries, keys, keys))
    causal = mask_kind == "causal"
    mask = None
    if mask_kind in ("bool", "additive"):
        mask = (torch.arange(keys) < torch.randint(1, keys + 1, (batch, 1))).view(batch, 1, 1, keys)
        if mask_kind == "additive":
            mask = torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
        mask = mask.expand(batch, 1, queries, keys)
    if mask_kind == "window":
        distance = torch.arange(queries).unsqueeze(1) - torch.arange(keys)
        mask = ((distance >= 0) & (distance < WINDOW)).expand(batch, 1, queries, keys)
    if mask_kind == "left":
        mask = (torch.arange(keys) >= torch.randint(0, keys, (batch, 1))).view(batch, 1, 1, keys)
    scale = 1 / math.sqrt(size)
    return (
        lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal),
        lambda: attention(q, k, v, mask, causal, scale),
    )


def seconds(run: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def compare(stock: Callable, ours: Callable, budget: float) -> tuple[float, float]:
    """Median ratio of interleaved runs, and our best time."""
    stock()
    ours()
    once = seconds(stock, 1) + seconds(ours, 1)
    repeats = max(1, min(200, int(budget / 10 / once)))
    turns = [(seconds(stock, repeats), seconds(ours, repeats)) for _ in range(9)]
    return statistics.median(s / o for s, o in turns), min(o for _, o in turns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--keys", nargs="+", type=int, default=[128, 1024, 4096])
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, more noise")
    arguments = parser.parse_args()
    print(f"{_cpu()}, torch {torch.__version__}, {datetime.date.today()}; stock time / our time")
    torch.manual_seed(0)
    ratios: dict[tuple[str, ...], list[float]] = {}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.dtype:
            print(f"\n{name}, {threads} thread{'s' * (threads > 1)}")
            print("what     batch heads queries  keys size mask          ours ratio")
            for cell in cells(arguments.keys):
                ratio, best = compare(*pair(cell, getattr(torch, name)), 0.05 if arguments.quick else 0.5)
                what, batch, heads, queries, keys, size, mask = cell
                ratios.setdefault((name, str(threads), what), []).append(ratio)
                print(
                    f"{what:8} {batch:5} {heads:5} {queries:7} {keys:5} {size:4} {mask:8} "
                    f"{best * 1e6:7.0f}us {ratio:5.2f}",
                    flush=True,
                )
    print("\ngeometric means (worst)")
    for (name, threads, what), values in ratios.items():
        mean = statistics.geometric_mean(values)
        print(f"{name:9} {threads} thread(s) {what:8} {mean:5.2f} ({min(values):.2f})")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
