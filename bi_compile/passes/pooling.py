"""Pooling: every window is taken in along one spatial dim after the other.

Averages are sums in fp32 (fp64 for fp64), last dim first, divided once and rounded once. At most CHAIN
elements along a dim are a chain: element 0, then 1, then 2, as elementwise operations on shifted slices that
a compiler can fuse. More are the row tree of `bi_compile::sum`. Which it is follows from the window alone.
Maxima are those of `bi_compile::amax`, and lie where `bi_compile::argmax` finds the first.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from bi_compile.passes.rewrite import is_floating, opmath, rewrite
from bi_compile.templates import reduction as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor

CHAIN = 16
"""The longest window, in elements along one dim, that is a chain."""


def per_dim(values: Any, dims: int) -> list[int]:
    """A pooling argument for each spatial dim: an int, one value or `dims` of them."""
    values = [values] if isinstance(values, int) else list(values)
    return values * dims if len(values) == 1 else values


def _windows(size: Any, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> Any:
    """How many windows there are along a dim."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    # The last window starts within the input or its left padding.
    return count - 1 if (count - 1) * stride >= size + padding else count


def _padded(x: Tensor, dim: int, before: int, after: Any, fill: float) -> Tensor:
    if isinstance(after, int) and before == 0 and after <= 0:
        return x
    return aten.constant_pad_nd.default(x, [0, 0] * (x.dim() - 1 - dim) + [before, after], fill)


def _taps(
    x: Tensor, dim: int, kernel: int, stride: int, padding: int, dilation: int, count: Any, fill: float
) -> list[Tensor]:
    """For each place in a window along `dim`, the elements that lie there in each of the windows."""
    reach = (count - 1) * stride + (kernel - 1) * dilation + 1
    x = _padded(x, dim, padding, reach - x.shape[dim] - padding, fill)
    ends = [(i * dilation, i * dilation + (count - 1) * stride + 1) for i in range(kernel)]
    return [aten.slice.Tensor(x, dim, start, end, stride) for start, end in ends]


def _along(values: Tensor, dim: int, dims: int) -> Tensor:
    """A vector laid along one of `dims` spatial dims."""
    return values.reshape([-1] + [1] * (dims - 1 - dim))


def added(taps: Sequence[Tensor]) -> Tensor:
    total = taps[0]
    for tap in taps[1:]:
        total = total + tap
    return total


def _window_sum(x: Tensor, dim: int, kernel: int, stride: int, padding: int, count: Any) -> Tensor:
    if kernel <= CHAIN:
        return added(_taps(x, dim, kernel, stride, padding, 1, count, 0.0))
    reach = (count - 1) * stride + kernel
    x = _padded(x, dim, padding, reach - x.shape[dim] - padding, 0.0)
    return bi.sum(x.narrow(dim, 0, reach).unfold(dim, kernel, stride), [x.dim()], False)


def _in_window(
    size: Any, kernel: int, stride: int, padding: int, count: Any, bound: Any, x: Tensor
) -> Tensor:
    """How many places of each window lie within `bound` of the padding (0: the input alone)."""
    start = torch.arange(count, device=x.device) * stride - padding
    return (start + kernel).clamp(max=size + bound) - start.clamp(min=-bound)


@rewrite(aten.avg_pool2d.default)
def _avg_pool2d(x: Tensor, kernel_size: Any, *arguments: Any, **options: Any) -> Any:
    return _avg_pool_nd(x, 2, kernel_size, *arguments, **options)


@rewrite(aten.avg_pool3d.default)
def _avg_pool3d(x: Tensor, kernel_size: Any, *arguments: Any, **options: Any) -> Any:
    return _avg_pool_nd(x, 3, kernel_size, *arguments, **options)


def _avg_pool_nd(
    x: Tensor,
    dims: int,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if not is_floating(x):
        return NotImplemented
    kernels, paddings = per_dim(kernel_size, dims), per_dim(padding, dims)
    strides = per_dim(stride or kernels, dims)
    total = opmath(x)
    for i in reversed(range(dims)):
        dim, kernel, step, pad = x.dim() - dims + i, kernels[i], strides[i], paddings[i]
        total = _window_sum(
            total, dim, kernel, step, pad, _windows(x.shape[dim], kernel, step, pad, 1, ceil_mode)
        )
    divisor = divisor_override or places(
        x, kernels, strides, paddings, ceil_mode=ceil_mode, count_include_pad=count_include_pad
    )
    return (total / divisor).to(x.dtype)


def places(
    x: Tensor,
    kernels: list[int],
    strides: list[int],
    paddings: list[int],
    *,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Any:
    """How many elements each average is of: a number, or a tensor over the spatial dims of the result."""
    dims = len(kernels)
    product: Any = 1
    for i in reversed(range(dims)):
        size, kernel, step, pad = x.shape[x.dim() - dims + i], kernels[i], strides[i], paddings[i]
        if ceil_mode or (pad and not count_include_pad):
            count = _windows(size, kernel, step, pad, 1, ceil_mode)
            inside = _in_window(size, kernel, step, pad, count, pad if count_include_pad else 0, x)
            product = product * _along(inside, i, dims)
        else:
            product = product * kernel
    return product


def _bins(size: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Start and end of the windows of an adaptive pooling."""
    step = torch.arange(count, device=like.device)
    return step * size // count, ((step + 1) * size + count - 1) // count


def _bin_sum(x: Tensor, dim: int, size: int, count: int) -> Tensor:
    bins = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    longest = max(end - start for start, end in bins)
    if longest > CHAIN:
        return torch.cat([bi.sum(x.narrow(dim, start, end - start), [dim], True) for start, end in bins], dim)
    if size % count == 0:
        return added([aten.slice.Tensor(x, dim, i, None, longest) for i in range(longest)])
    start, end = _bins(size, count, x)
    shape = [-1] + [1] * (x.dim() - 1 - dim)
    taps = []
    for i in range(longest):
        tap = x.index_select(dim, torch.minimum(start + i, end - 1))
        taps.append(torch.where((start + i < end).reshape(shape), tap, 0.0))
    return added(taps)


@rewrite(
    aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default,
)  # fmt: skip
def _adaptive_avg_pool(x: Tensor, output_size: Any) -> Any:
    if not is_floating(x):
        return NotImplemented
    dims = len(output_size)
    if all(count == 1 for count in output_size):
        return bi.mean(x, list(range(x.dim() - dims, x.dim())), True)
    total = opmath(x)
    for i in reversed(range(dims)):
        dim = x.dim() - dims + i
        total = _bin_sum(total, dim, int(x.shape[dim]), int(output_size[i]))
    return (total / bin_places(x, output_size)).to(x.dtype)


def bin_places(x: Tensor, output_size: Sequence[int]) -> Any:
    """How many elements each average of an adaptive pooling is of."""
    dims = len(output_size)
    product: Any = 1
    for i in reversed(range(dims)):
        start, end = _bins(int(x.shape[x.dim() - dims + i]), int(output_size[i]), x)
        product = product * _along(end - start, i, dims)
    return product


@rewrite(aten.max_pool2d_with_indices.default)
def _max_pool2d(x: Tensor, kernel_size: Any, *arguments: Any, **options: Any) -> Any:
    return _max_pool_nd(x, 2, kernel_size, *arguments, **options)


@rewrite(aten.max_pool3d_with_indices.default)
def _max_pool3d(x: Tensor, kernel_size: Any, *arguments: Any, **options: Any) -> Any:
    return _max_pool_nd(x, 3, kernel_size, *arguments, **options)


def _max_pool_nd(
    x: Tensor,
    dims: int,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    if not is_floating(x):
        return NotImplemented
    kernels, paddings = per_dim(kernel_size, dims), per_dim(padding, dims)
    strides, dilations = per_dim(stride or kernels, dims), per_dim(dilation, dims)
    first = x.dim() - dims
    largest = windows = x
    for i in range(dims):
        window = (kernels[i], strides[i], paddings[i], dilations[i])
        count = _windows(x.shape[first + i], *window, ceil_mode)
        # The windows of a dim are a dim of their own at the end.
        largest = bi.amax(_unfolded(largest, first + i, *window, count), [x.dim()], False)
        windows = _unfolded(windows, first + i, *window, count)
    found = bi.argmax(windows, list(range(x.dim(), x.dim() + dims)), False)
    where: Any = 0
    for i in range(dims):
        start = torch.arange(largest.shape[first + i], device=x.device) * strides[i] - paddings[i]
        at = _along(start, i, dims) + found // math.prod(kernels[i + 1 :]) % kernels[i] * dilations[i]
        # Where nothing is above -inf the first place of all is found, which may be padding.
        late = (-start + dilations[i] - 1) // dilations[i] * dilations[i]
        where = where * x.shape[first + i] + torch.where(at < 0, _along(start + late, i, dims), at)
    return largest, where


def _unfolded(
    x: Tensor, dim: int, kernel: int, stride: int, padding: int, dilation: int, count: Any
) -> Tensor:
    span = (kernel - 1) * dilation + 1
    reach = (count - 1) * stride + span
    x = _padded(x, dim, padding, reach - x.shape[dim] - padding, -math.inf)
    windows = x.narrow(dim, 0, reach).unfold(dim, span, stride)
    return aten.slice.Tensor(windows, windows.dim() - 1, 0, None, dilation)


@rewrite(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def _adaptive_max_pool(x: Tensor, output_size: Any) -> Any:
    if not is_floating(x):
        return NotImplemented
    dims = len(output_size)
    first = x.dim() - dims
    windows, places = x, []
    for i in range(dims):
        size, count = int(x.shape[first + i]), int(output_size[i])
        start, end = _bins(size, count, x)
        longest = max(-(-(b + 1) * size // count) - b * size // count for b in range(count))
        # A shorter bin has its last element again: that changes no maximum and no first place of one.
        at = torch.minimum(start.unsqueeze(1) + torch.arange(longest, device=x.device), end.unsqueeze(1) - 1)
        windows = windows.index_select(first + i, at.reshape(-1)).unflatten(first + i, (count, longest))
        windows = windows.movedim(first + i + 1, -1)
        places.append(at)
    over = list(range(x.dim(), x.dim() + dims))
    largest, found = bi.amax(windows, over, False), bi.argmax(windows, over, False)
    where: Any = 0
    for i in reversed(range(dims)):
        longest = places[i].shape[1]
        scale = math.prod(int(size) for size in x.shape[first + i + 1 :])
        bins = _along(torch.arange(places[i].shape[0], device=x.device), i, dims)
        where = where + places[i][bins, found % longest] * scale
        found = found // longest
    return largest, where


REWRITES = (*_avg_pool2d, *_avg_pool3d, *_adaptive_avg_pool, *_max_pool2d, *_max_pool3d, *_adaptive_max_pool)
