"""sort, topk, kthvalue and medians -> stable order: equal elements in the order of their indices."""

from typing import Any

import torch

from bi_compile.passes import quantile as _quantile  # noqa: F401  (for graphs before torch 2.12)
from bi_compile.passes.rewrite import is_floating, rewrite
from bi_compile.templates import order_statistics as _order_statistics  # noqa: F401  (defines the ops)
from bi_compile.templates import reduction as _reduction  # noqa: F401

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor
Selected = tuple[Tensor, Tensor]


@rewrite(aten.sort.default)
def _sort(x: Tensor, dim: int = -1, descending: bool = False) -> Any:
    return aten.sort.stable(x, stable=True, dim=dim, descending=descending)


@rewrite(aten.sort.stable)
def _sort_stable(x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    if is_floating(x) and x.device.type == "cuda":
        # PyTorch has several sorts there, and the kinds of zeros and NaN are not equal to all of them.
        return bi.topk(x, x.shape[dim] if x.dim() else 1, dim, descending)
    if stable:
        return NotImplemented
    return aten.sort.stable(x, stable=True, dim=dim, descending=descending)


@rewrite(aten.topk.default)
def _topk(x: Tensor, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return bi.topk(x, k, dim, largest)


def _at(selected: Selected, place: Any, dim: int, keepdim: bool) -> Selected:
    values, indices = selected
    if values.dim() == 0:
        return values, indices
    values, indices = values.narrow(dim, place, 1), indices.narrow(dim, place, 1)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


@rewrite(aten.kthvalue.default)
def _kthvalue(x: Tensor, k: Any, dim: int = -1, keepdim: bool = False) -> Any:
    return _at(bi.topk(x, k, dim, False), k - 1, dim, keepdim)


def _is_empty(x: Tensor, dim: int) -> bool:
    # A symbolic size is not asked for: that would specialise it.
    return x.dim() > 0 and isinstance(x.shape[dim], int) and x.shape[dim] == 0


@rewrite(aten.median.dim)
def _median_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    if _is_empty(x, dim):
        return NotImplemented
    if x.dim() == 0:
        return x.clone(), torch.zeros((), dtype=torch.int64, device=x.device)
    middle = (x.shape[dim] + 1) // 2
    values, indices = _at(bi.topk(x, middle, dim, False), middle - 1, dim, True)
    if is_floating(x):
        # The first NaN, where there is one.
        indices = torch.where(x.isnan().any(dim, True), bi.argmax(x, [dim], True), indices)
        values = x.gather(dim, indices)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


@rewrite(aten.nanmedian.dim)
def _nanmedian_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    if _is_empty(x, dim):
        return NotImplemented
    if not is_floating(x) or x.dim() == 0:
        return aten.median.dim(x, dim, keepdim)
    values, indices = aten.sort.stable(x, stable=True, dim=dim)
    # NaN sorts last: the middle is that of the elements before it.
    place = (x.isnan().logical_not().sum(dim, True) - 1).clamp(min=0) >> 1
    values, indices = values.gather(dim, place), indices.gather(dim, place)
    return (values, indices) if keepdim else (values.squeeze(dim), indices.squeeze(dim))


@rewrite(aten.median.default)
def _median(x: Tensor) -> Any:
    flat = x.reshape(-1)
    return NotImplemented if _is_empty(flat, 0) else aten.median.dim(flat, 0)[0]


@rewrite(aten.nanmedian.default)
def _nanmedian(x: Tensor) -> Any:
    flat = x.reshape(-1)
    return NotImplemented if _is_empty(flat, 0) else aten.nanmedian.dim(flat, 0)[0]


REWRITES = (
    *_sort, *_sort_stable, *_topk, *_kthvalue, *_median_dim, *_nanmedian_dim, *_median, *_nanmedian,
)  # fmt: skip
