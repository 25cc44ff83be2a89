"""Speed of contractions against stock PyTorch: interleaved runs in one process, one ratio a cell.

    python benchmarks/contraction.py [--dtypes float32 bfloat16] [--threads 1 2] [--shapes bars mm] [--quick]

A ratio above 1 means that ours is faster. Samples of a fraction of a millisecond alternate between the two
and the best of each count: other work on the machine only ever slows a sample down. With one thread its
processor time is measured, with more the time on the wall.
"""

import argparse
import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import bi_compile.templates.contraction  # noqa: F401  (defines the ops)

SAMPLE = 3e-4  # seconds


@dataclass(frozen=True)
class Cell:
    """One product to time."""

    group: str
    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


BARS = [
    Cell(f"linear {k} -> {n}", m, k, n)
    for k, n in ((768, 768), (768, 3072), (4096, 4096))
    for m in (1, 2, 8, 32, 128, 512)
]
MINILM = [
    Cell(f"linear {k} -> {n}", m, k, n)
    for k, n in ((384, 384), (384, 1536), (1536, 384))
    for m in (7, 64, 512, 4096)
]
MM = [Cell(f"mm {k} x {n}", m, k, n) for k, n in ((768, 768), (4096, 4096)) for m in (1, 2, 8, 32, 128, 512)]
BMM = [
    Cell("bmm 12 x", m, k, n, batch)
    for m, k, n, batch in (
        (64, 32, 64, 12),
        (64, 64, 32, 12),
        (128, 64, 128, 96),
        (128, 128, 64, 96),
        (1, 64, 512, 12),
    )
]
SHAPES = {"bars": BARS, "minilm": MINILM, "mm": MM, "bmm": BMM}


def contenders(
    cell: Cell, dtype: torch.dtype
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """Stock and ours on the same random operands."""
    ours = torch.ops.bi_compile
    if cell.group.startswith("bmm"):
        a, b = torch.randn(cell.batch, cell.m, cell.k), torch.randn(cell.batch, cell.k, cell.n)
        a, b = a.to(dtype), b.to(dtype)
        return lambda: torch.bmm(a, b), lambda: ours.bmm(a, b)
    x = torch.randn(cell.m, cell.k).to(dtype)
    if cell.group.startswith("mm"):
        b = torch.randn(cell.k, cell.n).to(dtype)
        return lambda: torch.mm(x, b), lambda: ours.mm(x, b)
    w, bias = torch.randn(cell.n, cell.k).to(dtype), torch.randn(cell.n).to(dtype)
    return lambda: torch.nn.functional.linear(x, w, bias), lambda: ours.linear(x, w, bias)


def seconds(call: Callable[[], torch.Tensor], repeats: int) -> float:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def measure(cell: Cell, dtype: torch.dtype, budget: float) -> tuple[float, float]:
    """Best times of stock and ours in seconds, of short samples taken in turn for `budget` seconds."""
    stock, ours = contenders(cell, dtype)
    for call in (stock, ours):
        call()
    repeats = max(1, int(SAMPLE / seconds(stock, 3)))
    times = []
    start = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < budget:
        times.append((seconds(stock, repeats), seconds(ours, repeats)))
    return min(s for s, _ in times), min(o for _, o in times)


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return f"{cpu}, torch {torch.__version__}, {datetime.date.today().isoformat()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=["bars"], choices=SHAPES)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, more noise")
    options = parser.parse_args()
    budget = 0.15 if options.quick else 1.0

    print(machine(), flush=True)
    for name in options.dtypes:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for shapes in options.shapes:
                ratios = []
                for cell in SHAPES[shapes]:
                    stock, best = measure(cell, getattr(torch, name), budget)
                    ratio = stock / best
                    ratios.append(ratio)
                    rate = cell.flops / best / 1e9
                    sizes = f"{cell.batch:3} x [{cell.m:4}, {cell.k:4}] x [{cell.k:4}, {cell.n:4}]"
                    speed = f"{best * 1e6:9.1f} us  {rate:7.1f} Gflop/s  {ratio:5.2f}x"
                    print(f"{name:9} {threads} threads  {cell.group:20} {sizes}  {speed}", flush=True)
                mean = math.exp(statistics.fmean(map(math.log, ratios)))
                summary = f"geometric mean {mean:.2f}x, least {min(ratios):.2f}x"
                print(f"{name:9} {threads} threads  {shapes}: {summary}\n", flush=True)


if __name__ == "__main__":
    main()
