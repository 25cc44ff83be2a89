"""sum, mean, var, norm, max and their kin over any dims -> one row tree."""

from typing import Any

import torch

from bi_compile.passes.complex_numbers import by_parts
from bi_compile.passes.rewrite import all_dims, integers_first, is_floating, opmath, rewrite
from bi_compile.templates import reduction as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor
Dtype = torch.dtype | None


def _cast(x: Tensor, dtype: Dtype) -> Tensor:
    return x if dtype is None or dtype == x.dtype else x.to(dtype)


def _dims(x: Tensor, dim: Any) -> list[int]:
    """The dims of a reduction as a list; None and [] mean all of them, as in ATen."""
    if dim is None:
        return all_dims(x)
    dims = [dim] if isinstance(dim, int) else list(dim)
    return dims or all_dims(x)


@rewrite(aten.sum.default)
@by_parts
@integers_first(aten.sum.default)
def _sum_all(x: Tensor, *, dtype: Dtype = None) -> Any:
    return bi.sum(_cast(x, dtype), all_dims(x), False) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.sum.dim_IntList)
@by_parts
@integers_first(aten.sum.dim_IntList)
def _sum(x: Tensor, dim: Any, keepdim: bool = False, *, dtype: Dtype = None) -> Any:
    return bi.sum(_cast(x, dtype), _dims(x, dim), keepdim) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.mean.default)
@by_parts
def _mean_all(x: Tensor, *, dtype: Dtype = None) -> Any:
    return bi.mean(_cast(x, dtype), all_dims(x), False) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.mean.dim)
@by_parts
def _mean(x: Tensor, dim: Any, keepdim: bool = False, *, dtype: Dtype = None) -> Any:
    return bi.mean(_cast(x, dtype), _dims(x, dim), keepdim) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.prod.default)
@integers_first(aten.prod.default)
def _prod_all(x: Tensor, *, dtype: Dtype = None) -> Any:
    return bi.prod(_cast(x, dtype), all_dims(x), False) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.prod.dim_int)
@integers_first(aten.prod.dim_int)
def _prod(x: Tensor, dim: int, keepdim: bool = False, *, dtype: Dtype = None) -> Any:
    return bi.prod(_cast(x, dtype), [dim], keepdim) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.amax.default)
def _amax(x: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
    return bi.amax(x, _dims(x, dim), keepdim) if is_floating(x) else NotImplemented


@rewrite(aten.amin.default)
def _amin(x: Tensor, dim: Any = (), keepdim: bool = False) -> Any:
    return bi.amin(x, _dims(x, dim), keepdim) if is_floating(x) else NotImplemented


@rewrite(aten.max.default)
def _max_all(x: Tensor) -> Any:
    return bi.amax(x, all_dims(x), False) if is_floating(x) else NotImplemented


@rewrite(aten.min.default)
def _min_all(x: Tensor) -> Any:
    return bi.amin(x, all_dims(x), False) if is_floating(x) else NotImplemented


@rewrite(aten.max.dim)
def _max_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    if not is_floating(x):
        return NotImplemented
    return bi.amax(x, [dim], keepdim), bi.argmax(x, [dim], keepdim)


@rewrite(aten.min.dim)
def _min_dim(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    if not is_floating(x):
        return NotImplemented
    return bi.amin(x, [dim], keepdim), bi.argmin(x, [dim], keepdim)


@rewrite(aten.aminmax.default)
def _aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Any:
    if not is_floating(x):
        return NotImplemented
    return bi.amin(x, _dims(x, dim), keepdim), bi.amax(x, _dims(x, dim), keepdim)


@rewrite(aten.argmax.default)
def _argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return bi.argmax(x, _dims(x, dim), keepdim) if is_floating(x) else NotImplemented


@rewrite(aten.argmin.default)
def _argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    return bi.argmin(x, _dims(x, dim), keepdim) if is_floating(x) else NotImplemented


def _correction(value: Any) -> float:
    return 1.0 if value is None else float(value)


@rewrite(aten.var.correction)
def _var(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return bi.var(x, _dims(x, dim), _correction(correction), keepdim)


@rewrite(aten.std.correction)
def _std(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    # The root of the variance that has not been rounded: in fp16 that may be infinite.
    return bi.var(opmath(x), _dims(x, dim), _correction(correction), keepdim).sqrt().to(x.dtype)


@rewrite(aten.var_mean.correction)
def _var_mean(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return bi.var_mean(x, _dims(x, dim), _correction(correction), keepdim)


@rewrite(aten.std_mean.correction)
def _std_mean(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    var, mean = bi.var_mean(opmath(x), _dims(x, dim), _correction(correction), keepdim)
    return var.sqrt().to(x.dtype), mean.to(x.dtype)


@rewrite(aten.linalg_vector_norm.default)
def _vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Dtype = None
) -> Any:
    return bi.norm(_cast(x, dtype), float(ord), _dims(x, dim), keepdim)


@rewrite(aten.norm.ScalarOpt_dim)
def _norm_dim(x: Tensor, p: Any, dim: Any, keepdim: bool = False) -> Any:
    return bi.norm(x, 2.0 if p is None else float(p), _dims(x, dim), keepdim)


@rewrite(aten.norm.Scalar)
def _norm_all(x: Tensor, p: Any = 2) -> Any:
    return bi.norm(x, float(p), all_dims(x), False)


@rewrite(aten.logsumexp.default)
def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Any:
    return bi.logsumexp(x, _dims(x, dim), keepdim) if is_floating(x) else NotImplemented


REWRITES = (
    *_sum_all, *_sum, *_mean_all, *_mean, *_prod_all, *_prod, *_amax, *_amin, *_max_all, *_min_all,
    *_max_dim, *_min_dim, *_aminmax, *_argmax, *_argmin, *_var, *_std, *_var_mean, *_std_mean,
    *_vector_norm, *_norm_dim, *_norm_all, *_logsumexp,
)  # fmt: skip
