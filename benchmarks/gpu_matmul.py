"""Speed of matrix products on a CUDA device against cuBLAS: projections of Llama-3-8B and Qwen3-8B.

    python benchmarks/gpu_matmul.py [--dtype bfloat16] [--models llama qwen llama/8 qwen/8] [--quick]

Each cell is one product x [M, K] times w [N, K] transposed. Calls with different weights, enough of them to
leave the L2 cache, are captured in one CUDA graph for each contender; the graphs are replayed in turn and the
median of each is kept. Ratios are cuBLAS / ours: above 1 ours is faster. The roofline is the larger of bytes
over a measured copy and operations over a measured large product. Host time is that of one call, nothing
awaited. Writes out/gpu_matmul.json and out/gpu_matmul.md. Takes about two minutes on an H100.
"""

import argparse
import datetime
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import bi_compile.templates.contraction  # noqa: F401  (defines the ops)

ROWS = (1, 16, 64, 128, 256, 512, 1024, 4096, 8192)
MODELS = {
    "llama": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)},
    "qwen": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)},
    "llama/8": {"qkv": (768, 4096), "o": (4096, 512), "gate_up": (3584, 4096), "down": (4096, 1792)},
    "qwen/8": {"qkv": (768, 4096), "o": (4096, 512), "gate_up": (3072, 4096), "down": (4096, 1536)},
}
"""Projection -> (N, K); "/8" is one shard of eight."""

CACHE = 100 * 2**20
Call = Callable[[], torch.Tensor]


def graph_of(calls: list[Call]) -> torch.cuda.CUDAGraph:
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def microseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)


def in_turn(contenders: list[list[Call]], repeats: int) -> list[float]:
    """Median microseconds of one call of each contender."""
    graphs = [graph_of(calls) for calls in contenders]
    times: list[list[float]] = [[] for _ in graphs]
    for round in range(repeats + 1):
        for graph, found in zip(graphs, times, strict=True):
            took = microseconds(graph)
            if round:
                found.append(took)
    return [statistics.median(t) / len(c) for t, c in zip(times, contenders, strict=True)]


def host_microseconds(call: Call, calls: int = 100) -> float:
    """Least mean of several rounds of calls whose results nobody awaits."""
    best = math.inf
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - start)
    torch.cuda.synchronize()
    return 1e6 * best / calls


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """Bytes and operations a microsecond: a large copy, a large product of cuBLAS."""
    x = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    a, b = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(2))
    copy, product = in_turn([[lambda: y.copy_(x)], [lambda: torch.mm(a, b)]], 5)
    return 2 * x.numel() / copy, 2 * 8192**3 / product


def cell(m: int, n: int, k: int, dtype: torch.dtype, repeats: int) -> tuple[float, float]:
    copies = max(2, min(16, CACHE // (n * k * dtype.itemsize))) if m < 1024 else 2
    weights = [torch.randn(n, k, device="cuda").to(dtype) for _ in range(copies)]
    x = torch.randn(m, k, device="cuda").to(dtype)
    stock = [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
    ours = [lambda w=w: torch.ops.bi_compile.linear(x, w, None) for w in weights]
    first, second = in_turn([stock, ours], repeats)
    return first, second


def table(rows: list[dict], models: list[str]) -> list[str]:
    lines = [
        "| cuBLAS / ours | " + " | ".join(f"M = {m}" for m in ROWS) + " |",
        "| --- |" + " --- |" * len(ROWS),
    ]
    for model in models:
        for name, (n, k) in MODELS[model].items():
            found = {r["m"]: r["ratio"] for r in rows if (r["n"], r["k"]) == (n, k)}
            values = " | ".join(f"{found[m]:.2f}" for m in ROWS)
            lines.append(f"| {model} {name} {n} x {k} | {values} |")
    return lines


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--quick", action="store_true", help="fewer repeats, more noise")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    dtype, repeats = getattr(torch, options.dtype), 3 if options.quick else 9
    import triton

    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    machine += f", {options.dtype}, {datetime.date.today().isoformat()}"
    bandwidth, rate = ceilings(dtype)
    print(f"{machine}; copy {bandwidth / 1e6:.2f} TB/s, product {rate / 1e6:.0f} TFLOP/s", flush=True)
    shapes = sorted({shape for model in options.models for shape in MODELS[model].values()})
    rows = []
    for n, k in shapes:
        for m in ROWS:
            stock, ours = cell(m, n, k, dtype, repeats)
            moved = dtype.itemsize * (n * k + m * k + m * n)
            roofline = max(moved / bandwidth, 2 * m * n * k / rate)
            rows.append(
                {"n": n, "k": k, "m": m, "cublas_us": stock, "ours_us": ours, "ratio": stock / ours,
                 "roofline_us": roofline}
            )  # fmt: skip
            print(
                f"N {n:5} K {k:5} M {m:4}  cuBLAS {stock:8.1f} us  ours {ours:8.1f} us  {stock / ours:5.2f}x"
                f"  roofline {roofline:8.1f} us",
                flush=True,
            )
    x, w = (torch.randn(*s, device="cuda").to(dtype) for s in ((1, 4096), (4096, 4096)))
    host = [
        host_microseconds(lambda: torch.nn.functional.linear(x, w)),
        host_microseconds(lambda: torch.ops.bi_compile.linear(x, w, None)),
    ]
    lines = [machine, "", *table(rows, options.models), ""]
    for model in options.models:
        found = [r["ratio"] for n, k in MODELS[model].values() for r in rows if (r["n"], r["k"]) == (n, k)]
        lines.append(f"{model}: geometric mean {geometric_mean(found):.3f}x, least {min(found):.2f}x")
    ratios = [r["ratio"] for r in rows]
    lines.append(f"all shapes: geometric mean {geometric_mean(ratios):.3f}x, least {min(ratios):.2f}x")
    lines.append(f"host time of one call: cuBLAS {host[0]:.0f} us, ours {host[1]:.0f} us")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "bandwidth": bandwidth, "rate": rate, "host_us": host, "cells": rows}
    (options.out / "gpu_matmul.json").write_text(json.dumps(report, indent=1))
    (options.out / "gpu_matmul.md").write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
