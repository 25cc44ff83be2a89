"""Reductions into slots chosen by an index: every slot is one chain in index order.

Ops (x, src, values: float32, float64, bfloat16 or float16 alike, any strides; a contiguous result like x)
    bi_compile::scatter_reduce(Tensor x, int dim, Tensor index, Tensor src, str reduce, bool include_self)
        As torch.scatter_reduce: index (int64) has x's rank, is nowhere larger than src, and nowhere larger
        than x but along dim. reduce: "sum", "prod", "mean", "amax" or "amin". An expanded index chooses rows.
    bi_compile::index_put_add(Tensor x, Tensor?[] indices, Tensor values)
        As torch.index_put with accumulate: integers (negative ones count from the end), masks and None in
        any mix; values broadcast to what indexing gives.

The chain of a slot starts from x's element (include_self) or from the identity, and takes in, one after the
other, the elements whose index names the slot: along dim in ascending order for `scatter_reduce`, in
row-major order of the broadcast indices for `index_put_add`. It runs in float32 (float64 for float64), each
operation rounded, and is rounded once to x's dtype. "mean" divides the chain of "sum" by the number of
elements, x's own included where it takes part. For the extrema NaN wins and +0 is above -0. A slot no index
names keeps x's value. NaN results are the one canonical quiet NaN.

So a slot depends on its own elements and their order alone: another sample's rows take part only where the
index says so.

Raises UnsupportedDtypeError for other dtypes and IndexError for a dim or an index out of range.
"""

from collections.abc import Sequence

import torch

from bi_compile.templates.reduction.shapes import check_dtype, wrap_dim
from bi_compile.templates.registry import define

REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


def _fake_scatter_reduce(
    x: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor, reduce: str, include_self: bool
) -> torch.Tensor:
    check_dtype("scatter_reduce", x)
    wrap_dim(dim, x.dim())
    return x.new_empty(x.shape)


def _fake_index_put_add(
    x: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor
) -> torch.Tensor:
    check_dtype("index_put_add", x)
    return x.new_empty(x.shape)


scatter_reduce_op = define(
    "scatter_reduce(Tensor x, int dim, Tensor index, Tensor src, str reduce, bool include_self) -> Tensor",
    family="scatter",
    fake=_fake_scatter_reduce,
)
index_put_add_op = define(
    "index_put_add(Tensor x, Tensor?[] indices, Tensor values) -> Tensor",
    family="scatter",
    fake=_fake_index_put_add,
)


def scatter_reduce(
    x: torch.Tensor,
    dim: int,
    index: torch.Tensor,
    src: torch.Tensor,
    reduce: str = "sum",
    include_self: bool = True,
) -> torch.Tensor:
    """x with the elements of src reduced into the slots along dim that index names."""
    check_dtype("scatter_reduce", x)
    return scatter_reduce_op(x, dim, index, src, reduce, include_self)


def index_put_add(
    x: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor
) -> torch.Tensor:
    """x with values added to the elements that x[indices] names, once for every time it names them."""
    check_dtype("index_put_add", x)
    return index_put_add_op(x, list(indices), values)
