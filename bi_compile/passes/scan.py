"""cumsum, cumprod and logcumsumexp along any dim -> one chain in index order."""

from typing import Any

import torch

from bi_compile.passes.rewrite import integers_first, is_floating, rewrite
from bi_compile.templates import scan as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor
Dtype = torch.dtype | None


@rewrite(aten.cumsum.default)
@integers_first(aten.cumsum.default)
def _cumsum(x: Tensor, dim: int, *, dtype: Dtype = None) -> Any:
    return bi.cumsum(x.to(dtype or x.dtype), dim) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.cumprod.default)
@integers_first(aten.cumprod.default)
def _cumprod(x: Tensor, dim: int, *, dtype: Dtype = None) -> Any:
    return bi.cumprod(x.to(dtype or x.dtype), dim) if is_floating(x, dtype) else NotImplemented


@rewrite(aten.logcumsumexp.default)
def _logcumsumexp(x: Tensor, dim: int) -> Any:
    return bi.logcumsumexp(x, dim) if is_floating(x) else NotImplemented


REWRITES = (*_cumsum, *_cumprod, *_logcumsumexp)
