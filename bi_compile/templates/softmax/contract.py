"""softmax and log_softmax over one dim: maximum, exponentials, their sum by the row tree, quotient.

Ops (x: float32, float64, bfloat16 or float16 of any shape and strides; a contiguous result of x's dtype)
    bi_compile::softmax(Tensor x, int dim) -> Tensor        e / sum(e), e = exp(x - amax(x))
    bi_compile::log_softmax(Tensor x, int dim) -> Tensor    (x - amax(x)) - log(sum(exp(x - amax(x))))

The sum is `bi_compile::sum`'s tree (see templates/reduction), so a fused softmax has the bits of its
operations run one by one in float32 (float64 for float64) with exp and log those of at::vec, which Inductor's
kernels use too. A row that contains NaN or +inf, or -inf alone, is all NaN, as in eager; trailing elements of
-inf change nothing for the others. One rounding to x's dtype.
Raises UnsupportedDtypeError for other dtypes and IndexError for a dim out of range.
"""

import torch

from bi_compile.templates.reduction.shapes import check_dtype, wrap_dim
from bi_compile.templates.registry import define


def _softmax(op: str) -> torch._ops.OpOverload:
    def fake(x: torch.Tensor, dim: int) -> torch.Tensor:
        check_dtype(op, x)
        wrap_dim(dim, x.dim())
        return x.new_empty(x.shape)

    return define(f"{op}(Tensor x, int dim) -> Tensor", family="softmax", fake=fake)


softmax_op = _softmax("softmax")
log_softmax_op = _softmax("log_softmax")


def softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """exp(x - m) / sum(exp(x - m)) with m the maximum over dim."""
    check_dtype("softmax", x)
    return softmax_op(x, dim)


def log_softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """(x - m) - log(sum(exp(x - m))) with m the maximum over dim."""
    check_dtype("log_softmax", x)
    return log_softmax_op(x, dim)
