"""Small kernels, most of which leave the order of a sum open; imported in a process of its own."""

import triton
import triton.language as tl

from bi_compile.templates.gpu import ahead
from bi_compile.templates.gpu.steps import certified, steps
from tests.interpreted.controls_compiled import _row_sum, _row_tree


def found(capability: int) -> dict[str, list]:
    """Name -> its steps, and whether they are a certificate."""
    kernels = {
        "tree": (_row_tree, 4, {}),
        "tree of 8 warps": (_row_tree, 8, {}),
        "sum": (_row_sum, 4, {}),
        "sum of 8 warps": (_row_sum, 8, {}),
        "largest": (_largest, 4, {}),
        "running sum": (_running_sum, 4, {}),
        "running maximum": (_running_maximum, 4, {}),
        "atomic sum": (_atomic_sum, 4, {}),
        "sum that is a flag": (_flag, 4, {}),
        "sum that chooses": (_choice, 4, {}),
        "fused": (_row_tree, 4, {"enable_fp_fusion": True}),
    }
    rows = {}
    for name, (kernel, warps, options) in kernels.items():
        types = {"x": "*fp32", "out": "*i32" if kernel is _flag else "*fp32"}
        compiled = ahead.compile_kernel(
            kernel, capability, types, {"N": 2048}, num_warps=warps, num_stages=1, **options
        )
        try:
            rows[name] = [str(certified(compiled)), True]
        except ValueError:
            rows[name] = [str(steps(compiled)), False]
    return rows


@triton.jit
def _largest(x, out, N: tl.constexpr):
    tl.store(out, tl.max(tl.load(x + tl.arange(0, N)), 0))


@triton.jit
def _running_sum(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.cumsum(tl.load(x + i), 0))


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b)


@triton.jit
def _running_maximum(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.associative_scan(tl.load(x + i), 0, _greater))


@triton.jit
def _atomic_sum(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.atomic_add(out + i % 2, tl.load(x + i))


@triton.jit
def _flag(x, out, N: tl.constexpr):
    tl.store(out, (tl.sum(tl.load(x + tl.arange(0, N)), 0) * 0.0 != 0.0).to(tl.int32))


@triton.jit
def _choice(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    values = tl.load(x + i)
    tl.store(out + i, tl.where(tl.sum(values, 0) > 0, values, 0.0))
