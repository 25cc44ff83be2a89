"""Speed of row reductions, softmax and norms against stock eager PyTorch: interleaved runs in one process.

    python benchmarks/reduction.py [--dtypes float32 bfloat16] [--threads 1 2] [--seconds 0.3] [--only sum]

A ratio above 1 means that ours is faster. Calls alternate between the two and the best of each count: other
work on the machine only ever slows a call down. Every call allocates its result, as in use; what a call
through torch.ops costs before the kernel starts is part of ours and shows where a cell takes a few
microseconds.
"""

import argparse
import datetime
import math
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import bi_compile.templates.normalization
import bi_compile.templates.reduction
import bi_compile.templates.softmax  # noqa: F401  (the three define the ops)

ROWS = ((64, 384), (512, 768), (4096, 384), (1024, 4096))
MIDDLE = (32, 64, 384)
EPS = 1e-5

Case = tuple[Callable, Callable]


def cases(x: torch.Tensor, dim: int) -> dict[str, Case]:
    """Name -> (stock call, our call) that reduce `dim` of x."""
    ours, aten = torch.ops.bi_compile, torch.ops.aten
    shape = x.shape[-1:]
    weight, bias = torch.ones(shape, dtype=x.dtype), torch.zeros(shape, dtype=x.dtype)
    found: dict[str, Case] = {
        "var": (partial(torch.var, x, dim), partial(ours.var.default, x, [dim], 1.0, False))
    }
    for name in ("sum", "mean", "amax", "argmax", "logsumexp"):
        found[name] = (
            partial(getattr(torch, name), x, dim),
            partial(getattr(ours, name).default, x, [dim], False),
        )
    for name in ("softmax", "log_softmax"):
        found[name] = (partial(getattr(torch, name), x, dim), partial(getattr(ours, name).default, x, dim))
    if dim == -1:
        found["layer_norm"] = (
            partial(aten.native_layer_norm, x, shape, weight, bias, EPS),
            partial(ours.layer_norm.default, x, shape, weight, bias, EPS),
        )
        found["rms_norm"] = (
            partial(aten._fused_rms_norm, x, shape, weight, EPS),
            partial(ours.rms_norm.default, x, shape, weight, EPS),
        )
    return found


def best_of(pair: Case, seconds: float) -> tuple[float, float]:
    """The shortest call of each, in seconds, the two alternating for `seconds`."""
    best = [math.inf, math.inf]
    for call in pair:
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for which, call in enumerate(pair):
            start = time.perf_counter()
            call()
            best[which] = min(best[which], time.perf_counter() - start)
    return best[0], best[1]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=0.3, help="time spent on each cell")
    parser.add_argument("--only", nargs="+", help="names of ops")
    options = parser.parse_args()
    settings = [(*MIDDLE, 1), *((*shape, -1) for shape in ROWS), (512, 768, 0), (4096, 384, 0)]
    ratios: dict[str, list[float]] = {}
    heads = ("op", "shape", "dim", "dtype", "threads", "stock us", "ours us", "ratio")
    print("{:12} {:>15} {:>3} {:>9} {:>7} {:>9} {:>9} {:>6}".format(*heads))
    for threads in options.threads:
        torch.set_num_threads(threads)
        for dtype in options.dtypes:
            for *shape, dim in settings:
                x = torch.randn(shape).to(getattr(torch, dtype))
                for name, pair in cases(x, dim).items():
                    if options.only and name not in options.only:
                        continue
                    stock, ours = best_of(pair, options.seconds)
                    ratios.setdefault(f"{name} {dtype}", []).append(stock / ours)
                    print(
                        f"{name:12} {'x'.join(map(str, shape)):>15} {dim:3} {dtype:>9} {threads:7} "
                        f"{stock * 1e6:9.1f} {ours * 1e6:9.1f} {stock / ours:6.2f}",
                        flush=True,
                    )
    print("\ngeometric mean of the ratios")
    for name, values in sorted(ratios.items()):
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"  {name:24} {mean:6.2f}   lowest {min(values):.2f} of {len(values)}")
    everything = [ratio for values in ratios.values() for ratio in values]
    print(f"  {'all':24} {math.exp(sum(map(math.log, everything)) / len(everything)):6.2f}")
    print(f"{processor()}, torch {torch.__version__}, {datetime.date.today()}")


if __name__ == "__main__":
    main()
