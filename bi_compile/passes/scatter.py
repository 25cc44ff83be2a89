"""Additions and other reductions by index -> one order for every slot."""

from collections.abc import Sequence
from typing import Any

import torch

from bi_compile.passes.rewrite import is_floating, opmath, rewrite
from bi_compile.templates import scatter as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor
Indices = Sequence[Tensor | None]


@rewrite(aten.scatter_add.default)
def _scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Any:
    return bi.scatter_reduce(x, dim, index, src, "sum", True) if is_floating(x) else NotImplemented


@rewrite(aten.scatter_reduce.two)
def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    return bi.scatter_reduce(x, dim, index, src, reduce, include_self) if is_floating(x) else NotImplemented


_SCATTER = {"add": "sum", "multiply": "prod"}


@rewrite(aten.scatter.reduce)
def _scatter_op(x: Tensor, dim: int, index: Tensor, src: Tensor, *, reduce: str) -> Any:
    return bi.scatter_reduce(x, dim, index, src, _SCATTER[reduce], True) if is_floating(x) else NotImplemented


@rewrite(aten.scatter.value_reduce)
def _scatter_value(x: Tensor, dim: int, index: Tensor, value: Any, *, reduce: str) -> Any:
    if not is_floating(x):
        return NotImplemented
    src = torch.full(index.shape, value, dtype=x.dtype, device=x.device)
    return bi.scatter_reduce(x, dim, index, src, _SCATTER[reduce], True)


def _by_rows(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, include_self: bool = True
) -> Tensor:
    """A reduction in which one index stands for all that lies at its place along dim."""
    shape = [1] * source.dim()
    if source.dim():
        shape[dim] = -1
    return bi.scatter_reduce(x, dim, index.reshape(shape).expand(source.shape), source, reduce, include_self)


@rewrite(aten.index_add.default)
def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Any:
    if not is_floating(x):
        return NotImplemented
    if alpha == 1:
        return _by_rows(x, dim, index, source, "sum")
    return _by_rows(opmath(x), dim, index, opmath(source) * alpha, "sum").to(x.dtype)


@rewrite(aten.index_reduce.default)
def _index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    return _by_rows(x, dim, index, source, reduce, include_self) if is_floating(x) else NotImplemented


@rewrite(aten.index_put.default)
def _index_put(x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False) -> Any:
    return bi.index_put_add(x, indices, values) if accumulate and is_floating(x) else NotImplemented


@rewrite(aten._unsafe_index_put.default, aten._index_put_impl.default)
def _index_put_unchecked(
    x: Tensor, indices: Indices, values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> Any:
    return aten.index_put.default(x, indices, values, accumulate)


@rewrite(aten.put.default)
def _put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Any:
    flat = aten.index_put.default(x.reshape(-1), [index.reshape(-1)], source.reshape(-1), accumulate)
    return flat.reshape(x.shape)


def counts(index: Tensor, slots: Any) -> Tensor:
    """How often each of `slots` numbers stands in a flat index."""
    return index.new_zeros(slots).index_add(0, index, torch.ones_like(index))


@rewrite(aten.bincount.default)
def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Any:
    if weights is None or not is_floating(weights):
        return NotImplemented
    weights = weights if weights.dtype in (torch.float32, torch.float64) else weights.double()
    slots = max(minlength, int(x.max()) + 1 if x.numel() else 0)
    return _by_rows(weights.new_zeros(slots), 0, x, weights, "sum")


@rewrite(aten.embedding_dense_backward.default)
def _embedding_dense_backward(
    grad: Tensor, indices: Tensor, rows: int, padding_idx: int, scale_grad_by_freq: bool
) -> Any:
    flat, index = opmath(grad).reshape(-1, grad.shape[-1]), indices.reshape(-1).long()
    if scale_grad_by_freq:
        flat = flat / counts(index, rows)[index, None]
    elif padding_idx < 0:
        return _by_rows(grad.new_zeros(rows, grad.shape[-1]), 0, index, grad.reshape(flat.shape), "sum")
    if padding_idx >= 0:
        # A zero added to a sum that starts from +0 changes no bit.
        flat = torch.where((index == padding_idx)[:, None], 0, flat)
    return _by_rows(flat.new_zeros(rows, grad.shape[-1]), 0, index, flat, "sum").to(grad.dtype)


@rewrite(aten.segment_reduce.default)
def _segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
) -> Any:
    if not is_floating(data) or indices is not None:
        return NotImplemented
    if offsets is not None:
        lengths = offsets.diff(dim=-1)
    if lengths is None:
        return NotImplemented
    ends = lengths.cumsum(-1) if offsets is None else offsets[..., 1:]
    trailing = data.shape[axis + 1 :]
    places = torch.arange(data.shape[axis], device=data.device).expand(data.shape[: axis + 1])
    segment = torch.searchsorted(ends.contiguous(), places.contiguous(), right=True)
    shape = (*lengths.shape, *[1] * len(trailing))
    start = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -torch.inf, "min": torch.inf}[reduce]
    slots = opmath(data).new_full((*lengths.shape, *trailing), start if initial is None else initial)
    index = segment.reshape(*segment.shape, *[1] * len(trailing)).expand(data.shape)
    op = {"max": "amax", "min": "amin", "mean": "sum"}.get(reduce, reduce)
    out = bi.scatter_reduce(slots, axis, index, opmath(data), op, True)
    if reduce == "mean":
        # Of no elements: what the segment starts from, or NaN.
        empty = torch.nan if initial is None else out
        out = torch.where((lengths == 0).reshape(shape), empty, out / lengths.reshape(shape))
    return out.to(data.dtype)


REWRITES = (
    *_scatter_add, *_scatter_reduce, *_scatter_op, *_scatter_value, *_index_add, *_index_reduce,
    *_index_put, *_index_put_unchecked, *_put, *_bincount, *_embedding_dense_backward, *_segment_reduce,
)  # fmt: skip
