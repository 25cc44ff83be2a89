"""Running sums along one dim: every line is one chain in index order.

Ops (x: float32, float64, bfloat16 or float16 of any shape and strides; a contiguous result like x)
    bi_compile::cumsum(Tensor x, int dim) -> Tensor         s = s + x[i], from +0
    bi_compile::cumprod(Tensor x, int dim) -> Tensor        s = s * x[i], from 1
    bi_compile::logcumsumexp(Tensor x, int dim) -> Tensor   s = m + log1p(exp(-|s - x[i]|)), m = max(s, x[i]),
                                                            from -inf; m alone if both are one infinity

The chain runs in float32 (float64 for float64) with each operation rounded; element i of the result is the
state after element i, rounded once. So elements that follow change nothing before them, and in float32 and
float64 a sum goes on from its last element: a sequence scanned in parts has the bits of the whole.
NaN results are the one canonical quiet NaN. exp and log1p are those of at::vec, which Inductor's kernels use
too. Eager PyTorch runs the chains of float32 in float64 and lets the layout choose among loops.

Raises UnsupportedDtypeError for other dtypes and IndexError for a dim out of range.
"""

import torch

from bi_compile.templates.reduction.shapes import check_dtype, wrap_dim
from bi_compile.templates.registry import define


def _scan(op: str) -> torch._ops.OpOverload:
    def fake(x: torch.Tensor, dim: int) -> torch.Tensor:
        check_dtype(op, x)
        wrap_dim(dim, x.dim())
        return x.new_empty(x.shape)

    return define(f"{op}(Tensor x, int dim) -> Tensor", family="scan", fake=fake)


cumsum_op = _scan("cumsum")
cumprod_op = _scan("cumprod")
logcumsumexp_op = _scan("logcumsumexp")


def cumsum(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The sum of every element and those before it along dim."""
    check_dtype("cumsum", x)
    return cumsum_op(x, dim)


def cumprod(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The product of every element and those before it along dim."""
    check_dtype("cumprod", x)
    return cumprod_op(x, dim)


def logcumsumexp(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The logarithm of the running sum of exponentials along dim."""
    check_dtype("logcumsumexp", x)
    return logcumsumexp_op(x, dim)
