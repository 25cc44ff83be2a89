"""grid_sample: images read at the places of a grid. Gradients, and the forward of three dims.

A place lies between taps: two along every dim where it is interpolated linearly, four for bicubic, one for
nearest. Corners are the products of taps, first dim slowest, and are added up in that order. The gradient of
the images is one `bi_compile::scatter_add`, corner after corner and within a corner in the order of the grid;
that of the grid is summed over the channels. All in fp32 (fp64 for fp64), rounded once. Follows the
definition in ATen's GridSampler.h. The forward of two dims is PyTorch's own decomposition, which agrees.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from bi_compile.passes.pooling import added
from bi_compile.passes.rewrite import is_floating, opmath, rewrite
from bi_compile.templates import reduction as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor

_LINEAR, _NEAREST, _CUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)


@dataclass(frozen=True)
class _Tap:
    """A place along one dim, the weight it is read with, and the derivative of that by the grid."""

    place: Tensor
    weight: Any
    slope: Any


@dataclass(frozen=True)
class _Corner:
    """Where it lies in flattened images [N, 1, places], whether that is inside, and its taps by dim."""

    index: Tensor
    inside: Tensor
    taps: Sequence[_Tap]

    def weight(self) -> Any:
        return math.prod(tap.weight for tap in self.taps)

    def slope(self, dim: int) -> Any:
        """The derivative of the weight by the grid's coordinate along a dim."""
        return math.prod(tap.slope if i == dim else tap.weight for i, tap in enumerate(self.taps))


def _clipped(at: Tensor, size: Any) -> tuple[Tensor, Tensor]:
    return at.clamp(0, size - 1), ((at > 0) & (at < size - 1)).to(at.dtype)


def _reflected(at: Tensor, low: float, span: Any) -> tuple[Tensor, Tensor]:
    """Folded back at low and at low + span, and the sign of its derivative."""
    if span == 0:
        return torch.zeros_like(at), torch.zeros_like(at)
    away = at - low
    rest, odd = torch.fmod(away.abs(), span), torch.fmod((away.abs() / span).floor(), 2) != 0
    sign = torch.where(away < 0, -1.0, 1.0)
    return torch.where(odd, span + low - rest, rest + low), torch.where(odd, -sign, sign)


def _padded(at: Tensor, size: Any, padding: int, align: bool) -> tuple[Tensor, Any]:
    """A place as the padding has it, and its derivative."""
    if padding == _ZEROS:
        return at, 1.0
    if padding == _BORDER:
        return _clipped(at, size)
    at, turned = _reflected(at, 0.0 if align else -0.5, size - 1 if align else size)
    at, within = _clipped(at, size)
    return at, turned * within


_A = -0.75
"""The parameter of PyTorch's cubic kernel."""


def _near(x: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic kernel at most 1 away, and its derivative."""
    return ((_A + 2) * x - (_A + 3)) * x * x + 1, (3 * (_A + 2) * x - 2 * (_A + 3)) * x


def _far(x: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic kernel from 1 to 2 away, and its derivative."""
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A, (3 * _A * x - 10 * _A) * x + 8 * _A


def cubic_weights(t: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The weights of the four taps around a place t behind the second, and their derivatives by t."""
    (first, first_slope), (second, second_slope) = _far(t + 1), _near(t)
    (third, third_slope), (fourth, fourth_slope) = _near(1 - t), _far(2 - t)
    return [(first, first_slope), (second, second_slope), (third, -third_slope), (fourth, -fourth_slope)]


def _taps(grid: Tensor, size: Any, mode: int, padding: int, align: bool) -> list[_Tap]:
    scale = (size * 0.5 - 0.5) if align else size * 0.5
    at = grid * scale + (size * 0.5 - 0.5)
    if mode == _CUBIC:
        low = at.floor()
        return [
            _Tap(_padded(low + (i - 1), size, padding, align)[0], weight, slope * scale)
            for i, (weight, slope) in enumerate(cubic_weights(at - low))
        ]
    at, slope = _padded(at, size, padding, align)
    if mode == _NEAREST:
        return [_Tap(at.round(), 1.0, 0.0)]
    low = at.floor()
    slope = slope * scale
    return [_Tap(low, low + 1 - at, -slope), _Tap(low + 1, at - low, slope)]


def _corners(grid: Tensor, sizes: Sequence[Any], mode: int, padding: int, align: bool) -> Iterator[_Corner]:
    """grid: [N, ..., dims], its last coordinate that of the first spatial dim."""
    places = opmath(grid).flatten(1, -2).unsqueeze(1).unbind(-1)[::-1]
    along = [_taps(p, size, mode, padding, align) for p, size in zip(places, sizes, strict=True)]
    for taps in product(*along):
        within = [(tap.place >= 0) & (tap.place < size) for tap, size in zip(taps, sizes, strict=True)]
        inside = functools.reduce(torch.logical_and, within)
        index: Any = 0
        for tap, size in zip(taps, sizes, strict=True):
            index = index * size + torch.where(inside, tap.place, 0).long()
        yield _Corner(index, inside, taps)


def _read(x: Tensor, corner: _Corner) -> Tensor:
    """What flattened images hold at a corner, 0 outside: [N, C, places]."""
    index = corner.index.expand(-1, x.shape[1], -1)
    return torch.where(corner.inside, opmath(x.gather(2, index)), 0)


@rewrite(aten.grid_sampler_3d.default)
def _grid_sampler_3d(x: Tensor, grid: Tensor, mode: int, padding: int, align: bool) -> Any:
    if not is_floating(x):
        return NotImplemented
    flat = x.flatten(2)
    read = [
        _read(flat, corner) * torch.where(corner.inside, corner.weight(), 0)
        for corner in _corners(grid, x.shape[2:], mode, padding, align)
    ]
    return added(read).reshape(*x.shape[:2], *grid.shape[1:-1]).to(x.dtype)


@rewrite(aten.grid_sampler_2d_backward.default, aten.grid_sampler_3d_backward.default)
def _backward(
    grad: Tensor, x: Tensor, grid: Tensor, mode: int, padding: int, align: bool, output_mask: Sequence[bool]
) -> Any:
    if not is_floating(x):
        return NotImplemented
    corners = list(_corners(grid, x.shape[2:], mode, padding, align))
    flat, sent = x.flatten(2), opmath(grad.flatten(2))
    of_images = of_grid = None
    if output_mask[0]:
        index = torch.cat([c.index for c in corners], 2).expand(-1, x.shape[1], -1)
        shares = torch.cat([torch.where(c.inside, sent * c.weight(), 0) for c in corners], 2)
        total = torch.zeros_like(flat, dtype=sent.dtype).scatter_add(2, index, shares)
        of_images = total.reshape(x.shape).to(x.dtype)
    if output_mask[1]:
        read = [_read(flat, c) for c in corners]
        along = []
        for dim in reversed(range(grid.shape[-1])):
            slopes = [v * torch.where(c.inside, c.slope(dim), 0) for v, c in zip(read, corners, strict=True)]
            along.append(bi.sum(sent * added(slopes), [1], False))
        of_grid = torch.stack(along, -1).reshape(grid.shape).to(grid.dtype)
    return of_images, of_grid


REWRITES = (*_grid_sampler_3d, *_backward)
