"""layer_norm, rms_norm, group_norm, batch_norm in evaluation, weight_norm -> row trees or pointwise ops."""

from typing import Any

import torch

from bi_compile.passes.rewrite import rewrite
from bi_compile.templates import normalization as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor


def _opmath(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


@rewrite(aten.native_layer_norm.default)
def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    return bi.layer_norm(x, shape, weight, bias, eps)


@rewrite(aten._fused_rms_norm.default)
def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None, eps: float | None) -> Any:
    return bi.rms_norm(x, shape, weight, torch.finfo(x.dtype).eps if eps is None else eps)


@rewrite(aten.native_group_norm.default)
def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, c: Any, hw: Any, groups: int, eps: float
) -> Any:
    # A group is a row: normalise it, then apply the affine map of each channel.
    per_group = c // groups
    rows = _opmath(x).reshape(n, groups, per_group * hw)
    y, mean, rstd = bi.layer_norm(rows, [per_group * hw], None, None, eps)
    y = y.reshape(n, c, hw)
    if weight is not None:
        y = y * _opmath(weight).reshape(1, c, 1)
    if bias is not None:
        y = y + _opmath(bias).reshape(1, c, 1)
    stats = torch.float64 if x.dtype == torch.float64 else x.dtype
    return (
        y.reshape(x.shape).to(x.dtype),
        mean.reshape(n, groups).to(stats),
        rstd.reshape(n, groups).to(stats),
    )


@rewrite(aten._native_batch_norm_legit_no_training.default)
def _batch_norm_eval(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float,
    eps: float,
) -> Any:
    return _normalise(x, weight, bias, mean, var, eps)


@rewrite(
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_functional.default,
    aten._batch_norm_with_update.default,
    aten._batch_norm_with_update_functional.default,
)
def _batch_norm(x: Tensor, *arguments: Any) -> Any:
    # Kept whole, so that the check of the final graph sees and refuses it: in training mode the statistics
    # are those of the batch. Taken apart they would pass as an ordinary mean.
    return NotImplemented


def _normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Any:
    shape = [1, -1] + [1] * (x.dim() - 2)
    y = _opmath(x) - _opmath(mean).reshape(shape)
    y = y * (1 / (_opmath(var) + eps).sqrt()).reshape(shape)
    if weight is not None:
        y = y * _opmath(weight).reshape(shape)
    if bias is not None:
        y = y + _opmath(bias).reshape(shape)
    empty = x.new_empty(0)
    return y.to(x.dtype), empty, empty.clone()


@rewrite(aten._weight_norm_interface_backward.default)
def _weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norm: Tensor, dim: int) -> Any:
    """Of w = g * v / norm, the norm of v over all dims but one."""
    over = [i for i in range(v.dim()) if i != dim]
    sent, direction, norm = _opmath(grad), _opmath(v), _opmath(norm)
    share = bi.sum(sent * direction, over, True) / norm
    grad_v = (sent - direction * (share / norm)) * (_opmath(g) / norm)
    return grad_v.to(v.dtype), share.to(g.dtype)


REWRITES = (*_layer_norm, *_rms_norm, *_group_norm, *_batch_norm_eval, *_weight_norm_backward)
KEPT_WHOLE = _batch_norm
