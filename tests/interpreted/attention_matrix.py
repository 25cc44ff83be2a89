"""Which kernels of attention spill registers, compiled for GPUs on a machine without one.

    python -m tests.interpreted.attention_matrix --capability 90

compiles what attention launches for every dtype, head size and case below, prints each launch that spills or
does not fit, then how many kernels were compiled, and exits with 1 if there was any such launch. Everything
takes hours of one core: `--dtype`, `--size`, `--case` and `--kernel` choose, `--jobs` is how many cores work.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from types import SimpleNamespace
from typing import NamedTuple

import torch

from tests.interpreted import compiled

KERNELS = ("walk", "apart", "careful", "merge_splits", "read")


class Case(NamedTuple):
    """A call of attention with 8 kv heads."""

    heads: int
    queries: int
    keys: int = 1600
    causal: bool = False
    mask: str | None = None
    """boolean or added, with rows that may begin at keys of their own."""
    softcap: float = 0.0
    multiprocessors: int = 1
    """Of few, splits are walked in sequence; of many, in parallel."""
    value_size: int | None = None
    """None: that of keys."""


CASES = {
    "prefill": Case(8, 512, causal=True),
    "grouped": Case(32, 512, causal=True),
    "short": Case(8, 512, 200, causal=True),
    "full": Case(8, 512),
    "parallel": Case(8, 64, causal=True, multiprocessors=1000),
    "decode": Case(8, 1, multiprocessors=132),
    "grouped decode": Case(32, 1, multiprocessors=132),
    "decode in sequence": Case(32, 1),
    "few": Case(32, 2, causal=True, multiprocessors=132),
    "few of many": Case(32, 2, 3100, causal=True, multiprocessors=12),
    "many decodes": Case(32, 1, 3100, multiprocessors=12),
    "many short decodes": Case(32, 1, multiprocessors=10),
    "many capped decodes": Case(32, 1, 3100, softcap=2.0, multiprocessors=12),
    "few in sequence": Case(32, 4, causal=True),
    "short decode": Case(32, 1, 200),
    "latent": Case(32, 512, causal=True, value_size=128),
    "latent window": Case(32, 512, mask="boolean", value_size=128),
    "latent bias": Case(32, 512, causal=True, mask="added", value_size=128),
    "latent in parallel": Case(8, 64, causal=True, multiprocessors=1000, value_size=128),
    "latent decode": Case(32, 1, multiprocessors=132, value_size=128),
    "latent capped": Case(32, 512, causal=True, softcap=2.0, value_size=128),
    "latent capped bias": Case(32, 512, causal=True, mask="added", softcap=2.0, value_size=128),
    "window": Case(32, 512, mask="boolean"),
    "window alone": Case(8, 512, mask="boolean"),
    "window in parallel": Case(8, 64, mask="boolean", multiprocessors=1000),
    "short window": Case(32, 512, 200, mask="boolean"),
    "masked decode": Case(32, 1, mask="boolean"),
    "masked decode in parallel": Case(32, 1, mask="boolean", multiprocessors=132),
    "few masked": Case(32, 2, mask="boolean"),
    "biased decode": Case(8, 1, mask="added"),
    "bias": Case(8, 512, causal=True, mask="added"),
    "grouped bias": Case(32, 512, causal=True, mask="added"),
    "bias in parallel": Case(8, 64, causal=True, mask="added", multiprocessors=1000),
    "capped": Case(8, 512, causal=True, softcap=2.0),
    "capped window": Case(32, 512, mask="boolean", softcap=2.0),
    "capped bias": Case(8, 512, causal=True, mask="added", softcap=2.0),
    "capped decode": Case(32, 1, softcap=2.0, multiprocessors=132),
    "capped masked decode": Case(32, 1, mask="boolean", softcap=2.0, multiprocessors=132),
}
DTYPES = ("bfloat16", "float32")
SIZES = (64, 80, 96, 100, 128, 192, 256, 512)


def pretend(capability: int) -> None:
    """From now on attention takes CPU tensors for those of a GPU, and launches are compiled."""
    from bi_compile.templates.attention import gpu

    compiled.compile_launches(capability)
    for name in ("_has_tensor_maps", "_starts_early"):
        setattr(gpu, name, lambda x: capability >= 90)
    gpu._has_tensor_memory = lambda x: capability >= 100
    gpu._shared_memory = lambda x: compiled.LIMITS[capability]


def builds(dtype: str, size: int, case: Case, kernels: Iterable[str] = KERNELS) -> Iterator[dict]:
    """What a call launches of these kernels, as in `compiled.BUILDS`, with the name of the kernel.

    walk: of rows that share their first key. apart: of the others. careful: of what is not finite.
    """
    from bi_compile.templates.attention import gpu, gpu_masks

    gpu._multiprocessors = lambda x: case.multiprocessors
    stock = gpu.attend, gpu.merge_splits, gpu_masks._read
    gpu.attend = Chosen(stock[0], lambda given: _name(given) in kernels)
    gpu.merge_splits = Chosen(stock[1], lambda given: "merge_splits" in kernels)
    gpu_masks._read = Chosen(stock[2], lambda given: "read" in kernels)
    q = torch.empty(1, case.heads, case.queries, size, dtype=getattr(torch, dtype))
    k = torch.empty(1, 8, case.keys, size, dtype=q.dtype)
    mask = None
    if case.mask:
        kind = torch.bool if case.mask == "boolean" else q.dtype
        mask = torch.ones(1, 1, case.queries, case.keys, dtype=kind)
    try:
        gpu.attention(q, k, k[..., : case.value_size].contiguous(), mask, case.causal, 0.1, case.softcap)
    finally:
        gpu.attend, gpu.merge_splits, gpu_masks._read = stock
    found = list(compiled.BUILDS)
    compiled.BUILDS.clear()
    for build in found:
        name = build["name"]
        yield build | {"name": _name(build["given"]) if name == "attend" else name.strip("_")}


def _name(given: dict) -> str:
    return "careful" if given["CAREFUL"] else "apart" if given["APART"] else "walk"


class Chosen:
    """A kernel whose launches happen where they are wanted; `wanted` is given their constants and options."""

    def __init__(self, kernel, wanted):
        self._kernel, self._wanted = kernel, wanted

    def __getitem__(self, grid):
        return lambda *args, **given: self._kernel[grid](*args, **given) if self._wanted(given) else None


def _told(dtype: str, size: int, name: str, kernels: tuple[str, ...]) -> list[tuple[str, str]]:
    """For each launch its hash, and what is wrong with it or nothing."""
    from bi_compile.templates.gpu.ahead import spills_in_innermost_loops

    rows = []
    for build in builds(dtype, size, CASES[name], kernels):
        spilled = build["stack"] + build["local"]
        told = ""
        if spilled:
            in_loops = spills_in_innermost_loops(SimpleNamespace(**build))
            told = f"{spilled} bytes, {in_loops} instructions in innermost loops"
        if build["shared"] > compiled.LIMITS[build["capability"]]:
            told += f" {build['shared']} bytes of shared memory"
        if told:
            told = f"{build['capability']} {dtype} {size} {name}: {build['name']}: {told}"
        rows.append((build["metadata"].hash, told))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capability", type=int, default=90, choices=compiled.LIMITS)
    parser.add_argument("--dtype", nargs="+", default=DTYPES, choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--size", nargs="+", type=int, default=SIZES)
    parser.add_argument("--case", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--kernel", nargs="+", default=KERNELS, choices=KERNELS)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    calls = list(product(args.dtype, args.size, args.case, [tuple(args.kernel)]))
    hashes, spilling, launches = set(), 0, 0
    with ProcessPoolExecutor(args.jobs, initializer=pretend, initargs=(args.capability,)) as pool:
        for rows in pool.map(_told, *zip(*calls, strict=True)):
            for own_hash, told in rows:
                hashes.add(own_hash)
                launches += 1
                if told:
                    spilling += 1
                    print(told, flush=True)
    print(f"{args.capability}: {len(hashes)} kernels of {launches} launches; {spilling} launches spill")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
