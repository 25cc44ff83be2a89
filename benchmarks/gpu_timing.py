"""Timing on a CUDA device: captured in a CUDA graph, ours and stock in turns, medians of ratios."""

import statistics
from collections.abc import Callable

import torch
from triton.testing import do_bench_cudagraph


def compare(
    ours: Callable[[], object], stock: Callable[[], object], turns: int = 3
) -> tuple[float, float, float]:
    """Microseconds of ours, of stock, and the median ratio ours / stock."""
    times = [
        (1e3 * do_bench_cudagraph(ours, rep=20), 1e3 * do_bench_cudagraph(stock, rep=20))
        for _ in range(turns)
    ]
    ratio = statistics.median(a / b for a, b in times)
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times), ratio


def machine() -> str:
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
