"""Gradients of pooling: every element adds up what the windows around it send back, in their order.

Of averages each window sends its gradient divided by its number of elements, in fp32 (fp64 for fp64); an
element takes it in along one spatial dim after the other, last dim first, and rounds once. Along a dim the
addends are a chain: of `avg_pool` in the order of the element's place in the window, of adaptive pooling in
the order of the bins. Of maxima the gradient goes to where the maximum lay, by `bi_compile::scatter_add`.
"""

from typing import Any

import torch

from bi_compile.passes import pooling
from bi_compile.passes.rewrite import is_floating, opmath, rewrite

aten = torch.ops.aten
Tensor = torch.Tensor


def _spread(share: Tensor, dim: int, kernel: int, stride: int, padding: int, size: Any) -> Tensor:
    """What each of `size` elements along dim gets from the windows around it."""
    count = share.shape[dim]
    shape: list[Any] = list(share.shape)
    shape[dim] = torch.sym_max((count - 1) * stride + kernel, padding + size)
    nothing = share.new_zeros(shape)
    ends = [(i, i + (count - 1) * stride + 1) for i in range(kernel)]
    taps = [aten.slice_scatter.default(nothing, share, dim, start, end, stride) for start, end in ends]
    return pooling.added(taps).narrow(dim, padding, size)


@rewrite(aten.avg_pool2d_backward.default)
def _avg_pool2d(grad: Tensor, x: Tensor, kernel_size: Any, *arguments: Any) -> Any:
    return _avg_pool_nd(grad, x, 2, kernel_size, *arguments)


@rewrite(aten.avg_pool3d_backward.default)
def _avg_pool3d(grad: Tensor, x: Tensor, kernel_size: Any, *arguments: Any) -> Any:
    return _avg_pool_nd(grad, x, 3, kernel_size, *arguments)


def _avg_pool_nd(
    grad: Tensor,
    x: Tensor,
    dims: int,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    if not is_floating(x):
        return NotImplemented
    kernels, paddings = pooling.per_dim(kernel_size, dims), pooling.per_dim(padding, dims)
    strides = pooling.per_dim(stride or kernels, dims)
    divisor = divisor_override or pooling.places(
        x, kernels, strides, paddings, ceil_mode=ceil_mode, count_include_pad=count_include_pad
    )
    total = opmath(grad) / divisor
    for i in reversed(range(dims)):
        dim = x.dim() - dims + i
        total = _spread(total, dim, kernels[i], strides[i], paddings[i], x.shape[dim])
    return total.to(x.dtype)


@rewrite(aten._adaptive_avg_pool2d_backward.default)
def _adaptive_avg_pool2d(grad: Tensor, x: Tensor) -> Any:
    return _adaptive_avg_pool_nd(grad, x, 2)


@rewrite(aten._adaptive_avg_pool3d_backward.default)
def _adaptive_avg_pool3d(grad: Tensor, x: Tensor) -> Any:
    return _adaptive_avg_pool_nd(grad, x, 3)


def _adaptive_avg_pool_nd(grad: Tensor, x: Tensor, dims: int) -> Any:
    if not is_floating(x):
        return NotImplemented
    total = opmath(grad) / pooling.bin_places(x, grad.shape[-dims:])
    for dim in reversed(range(x.dim() - dims, x.dim())):
        total = _spread_bins(total, dim, int(x.shape[dim]))
    return total.to(x.dtype)


def _spread_bins(share: Tensor, dim: int, size: int) -> Tensor:
    """Element j lies in the bins j * count // size to ((j + 1) * count - 1) // size."""
    count = int(share.shape[dim])
    most = max(((j + 1) * count - 1) // size - j * count // size for j in range(size)) + 1
    place = torch.arange(size, device=share.device)
    first, last = place * count // size, ((place + 1) * count - 1) // size
    shape = [-1] + [1] * (share.dim() - 1 - dim)
    taps = []
    for i in range(most):
        tap = share.index_select(dim, torch.minimum(first + i, last))
        taps.append(torch.where((first + i <= last).reshape(shape), tap, 0.0))
    return pooling.added(taps)


@rewrite(aten.max_pool2d_with_indices_backward.default)
def _max_pool2d(grad: Tensor, x: Tensor, *arguments: Any) -> Any:
    return _to_maxima(grad, x, arguments[-1], 2)


@rewrite(aten.max_pool3d_with_indices_backward.default)
def _max_pool3d(grad: Tensor, x: Tensor, *arguments: Any) -> Any:
    return _to_maxima(grad, x, arguments[-1], 3)


@rewrite(aten.adaptive_max_pool2d_backward.default)
def _adaptive_max_pool2d(grad: Tensor, x: Tensor, indices: Tensor) -> Any:
    return _to_maxima(grad, x, indices, 2)


@rewrite(aten.adaptive_max_pool3d_backward.default)
def _adaptive_max_pool3d(grad: Tensor, x: Tensor, indices: Tensor) -> Any:
    return _to_maxima(grad, x, indices, 3)


def _to_maxima(grad: Tensor, x: Tensor, indices: Tensor, dims: int) -> Any:
    if not is_floating(x):
        return NotImplemented
    planes, where, values = (t.flatten(-dims) for t in (torch.zeros_like(x), indices, grad))
    return planes.scatter_add(-1, where, values).reshape(x.shape)


REWRITES = (
    *_avg_pool2d,
    *_avg_pool3d,
    *_adaptive_avg_pool2d,
    *_adaptive_avg_pool3d,
    *_max_pool2d,
    *_max_pool3d,
    *_adaptive_max_pool2d,
    *_adaptive_max_pool3d,
)
