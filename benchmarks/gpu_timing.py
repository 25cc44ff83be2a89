"""Timing on a CUDA device: captured in a CUDA graph, ours and stock in turns, medians of ratios."""

import statistics
from collections.abc import Callable

import torch
from triton.testing import do_bench_cudagraph


def compare(
    ours: Callable[[], object], stock: Callable[[], object], turns: int = 3
) -> tuple[float, float, float]:
    """Microseconds of ours, of stock, and the median ratio ours / stock."""
    times = in_turns(ours, stock, turns=turns)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return *map(statistics.median, times), ratio


def in_turns(*calls: Callable[[], object], turns: int = 3) -> list[list[float]]:
    """Microseconds of each call, once a turn."""
    times = [[1e3 * do_bench_cudagraph(call, rep=20) for call in calls] for _ in range(turns)]
    return [list(of_one) for of_one in zip(*times, strict=True)]


def machine() -> str:
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
