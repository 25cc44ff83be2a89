"""Reductions over any dims, each result by one tree whose shape follows from the reduced length alone.

Ops (x: float32, float64, bfloat16 or float16 of any shape and strides; dims: an empty list means all)
    bi_compile::sum, mean, prod, amax, amin (Tensor x, int[] dims, bool keepdim) -> Tensor
    bi_compile::argmax, argmin (Tensor x, int[] dims, bool keepdim) -> Tensor
    bi_compile::var (Tensor x, int[] dims, float correction, bool keepdim) -> Tensor
    bi_compile::var_mean (Tensor x, int[] dims, float correction, bool keepdim) -> (Tensor, Tensor)
    bi_compile::norm (Tensor x, float ord, int[] dims, bool keepdim) -> Tensor
    bi_compile::logsumexp (Tensor x, int[] dims, bool keepdim) -> Tensor

The tree: the reduced dims, ascending, are flattened in row-major order and cut in chunks of REDUCTION_CHUNK.
Inside a chunk lane j of REDUCTION_LANES starts at the identity and takes in elements j, j + lanes, ... in
order; lanes fold in halves; chunks combine by the balanced tree anchored at chunk 0 (`numerics.tree_levels`).
Appending the identity changes no bit, and no other extent, stride or thread count enters.

Everything inside is computed in float32 (float64 for float64) with each operation rounded, no fused
multiply-adds; results are rounded once to x's dtype. NaN results are the one canonical quiet NaN.

Results have x's dtype (argmax and argmin: int64), contiguous, without the reduced dims or, with keepdim, with
ones in their places. Zero-length reductions are as in eager: sum 0, prod 1, mean and var NaN, logsumexp -inf;
amax, amin, argmax, argmin and the norms without an identity raise IndexError.
Raises UnsupportedDtypeError for other dtypes, IndexError for a dim out of range, RuntimeError for one given
twice.
"""

import math
from collections.abc import Callable, Sequence

import torch

from bi_compile.templates.reduction.shapes import check_dtype, reduced_shape, wrap_dims
from bi_compile.templates.registry import define

Dims = Sequence[int]


def _check_not_empty(op: str, x: torch.Tensor, dims: Dims) -> None:
    # A symbolic size is left to the kernel: asking would specialise it.
    sizes = {d: size for d in wrap_dims(x, dims) if isinstance(size := x.shape[d], int)}
    for d, size in sizes.items():
        if size == 0:
            raise IndexError(f"{op}(): Expected reduction dim {d} to have non-zero size.")


def _reduces(
    op: str, *, schema: str = "", dtype: torch.dtype | None = None, needs_elements: bool = False
) -> torch._ops.OpOverload:
    def fake(x: torch.Tensor, dims: Dims, keepdim: bool) -> torch.Tensor:
        check_dtype(op, x)
        if needs_elements:
            _check_not_empty(op, x, dims)
        return x.new_empty(reduced_shape(x, dims, keepdim), dtype=dtype or x.dtype)

    return define(f"{op}(Tensor x, int[] dims, bool keepdim) -> Tensor", family="reduction", fake=fake)


def _fake_var(x: torch.Tensor, dims: Dims, correction: float, keepdim: bool) -> torch.Tensor:
    check_dtype("var", x)
    return x.new_empty(reduced_shape(x, dims, keepdim))


def _fake_var_mean(x: torch.Tensor, dims: Dims, correction: float, keepdim: bool) -> tuple:
    check_dtype("var_mean", x)
    shape = reduced_shape(x, dims, keepdim)
    return x.new_empty(shape), x.new_empty(shape)


def _fake_norm(x: torch.Tensor, ord: float, dims: Dims, keepdim: bool) -> torch.Tensor:
    check_dtype("norm", x)
    if ord < 0 or math.isinf(ord):
        _check_not_empty("norm", x, dims)
    return x.new_empty(reduced_shape(x, dims, keepdim))


sum_op = _reduces("sum")
mean_op = _reduces("mean")
prod_op = _reduces("prod")
amax_op = _reduces("amax", needs_elements=True)
amin_op = _reduces("amin", needs_elements=True)
argmax_op = _reduces("argmax", dtype=torch.int64, needs_elements=True)
argmin_op = _reduces("argmin", dtype=torch.int64, needs_elements=True)
logsumexp_op = _reduces("logsumexp")
var_op = define(
    "var(Tensor x, int[] dims, float correction, bool keepdim) -> Tensor", family="reduction", fake=_fake_var
)
var_mean_op = define(
    "var_mean(Tensor x, int[] dims, float correction, bool keepdim) -> (Tensor, Tensor)",
    family="reduction",
    fake=_fake_var_mean,
)
norm_op = define(
    "norm(Tensor x, float ord, int[] dims, bool keepdim) -> Tensor", family="reduction", fake=_fake_norm
)


def _checked(op: Callable, name: str, x: torch.Tensor, *args):
    check_dtype(name, x)
    return op(x, *args)


def sum(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The sum over dims. Trailing zeros are inert: a padded row has the bits of the row."""
    return _checked(sum_op, "sum", x, dims, keepdim)


def mean(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The sum divided by the number of elements, rounded once."""
    return _checked(mean_op, "mean", x, dims, keepdim)


def prod(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The product over dims by the same tree; trailing ones are inert."""
    return _checked(prod_op, "prod", x, dims, keepdim)


def amax(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The maximum over dims. NaN wins; +0 is above -0. Raises IndexError over no elements."""
    return _checked(amax_op, "amax", x, dims, keepdim)


def amin(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The minimum over dims. NaN wins; -0 is below +0. Raises IndexError over no elements."""
    return _checked(amin_op, "amin", x, dims, keepdim)


def argmax(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The int64 flat index, within the reduced dims, of the first maximum; the first NaN if there is one.

    The two zeros tie, as in eager. Raises IndexError over no elements.
    """
    return _checked(argmax_op, "argmax", x, dims, keepdim)


def argmin(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The int64 flat index, within the reduced dims, of the first minimum; the first NaN if there is one."""
    return _checked(argmin_op, "argmin", x, dims, keepdim)


def var(x: torch.Tensor, dims: Dims = (), correction: float = 1.0, keepdim: bool = False) -> torch.Tensor:
    """sum((x - mean)**2) / max(0, n - correction) in two passes; the mean between them is not rounded."""
    return _checked(var_op, "var", x, dims, float(correction), keepdim)


def var_mean(
    x: torch.Tensor, dims: Dims = (), correction: float = 1.0, keepdim: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`var` and `mean` with the bits each has alone."""
    return _checked(var_mean_op, "var_mean", x, dims, float(correction), keepdim)


def norm(x: torch.Tensor, ord: float = 2.0, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """The vector norm over dims.

    ord 0 counts what is not zero; 1 sums |x|; 2 is the square root of the sum of x * x; inf and -inf are the
    extrema of |x|; any other is sum(|x| ** ord) ** (1 / ord). Raises IndexError over no elements where ord is
    negative or infinite.
    """
    return _checked(norm_op, "norm", x, float(ord), dims, keepdim)


def logsumexp(x: torch.Tensor, dims: Dims = (), keepdim: bool = False) -> torch.Tensor:
    """log(sum(exp(x - m))) + m with m the maximum, or 0 where that is infinite."""
    return _checked(logsumexp_op, "logsumexp", x, dims, keepdim)
