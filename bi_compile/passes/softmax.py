"""softmax and log_softmax -> one row tree; their gradients -> sums of the same tree."""

from typing import Any

import torch

from bi_compile.passes.rewrite import rewrite
from bi_compile.templates import softmax as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor


@rewrite(aten._softmax.default)
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return bi.softmax(x.to(torch.float32) if half_to_float else x, dim)


@rewrite(aten._log_softmax.default)
def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Any:
    return bi.log_softmax(x.to(torch.float32) if half_to_float else x, dim)


@rewrite(aten._safe_softmax.default)
def _safe_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Any:
    # A row of nothing but -inf gives zeros.
    x = x if dtype is None else x.to(dtype)
    empty = (x == float("-inf")).all(dim, True)
    return torch.where(empty, torch.zeros_like(x), bi.softmax(x, dim))


def _opmath(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


@rewrite(aten._softmax_backward_data.default)
def _softmax_backward(grad: Tensor, out: Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    g, y = _opmath(grad), _opmath(out)
    gy = g * y
    return (gy - y * bi.sum(gy, [dim], True)).to(input_dtype)


@rewrite(aten._log_softmax_backward_data.default)
def _log_softmax_backward(grad: Tensor, out: Tensor, dim: int, input_dtype: torch.dtype) -> Any:
    g, y = _opmath(grad), _opmath(out)
    return (g - y.exp() * bi.sum(g, [dim], True)).to(input_dtype)


REWRITES = (*_softmax, *_log_softmax, *_safe_softmax, *_softmax_backward, *_log_softmax_backward)
