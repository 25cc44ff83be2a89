"""The convolution tree, spelled in plain torch ops: the kernel's bits.

On CUDA devices `products` makes the difference, the sums of products as they are taken there.
"""

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

import torch

from bi_compile.templates.contraction import oracle as contraction

Tensor = torch.Tensor
Coordinates = Sequence[Tensor]  # for each spatial dimension, [outputs, taps]: what a tap reads
Products = Callable[[Tensor, Tensor], Tensor]


def convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    products: Products = contraction.bmm,
    taps_first: bool = False,
) -> Tensor:
    """products: of weights [*, outputs, K] and windows [*, K, positions], both widened to fp32.

    taps_first: K counts (tap, input channel), not (input channel, tap).
    """
    if taps_first:
        products = _with_taps_first(products, x.shape[1] // groups)
    kernel = w.shape[2:]
    steps = list(zip(stride, padding, dilation, strict=True))
    taps = [torch.arange(k) for k in kernel]
    if not transposed:
        coordinates = [
            torch.arange((size + 2 * p - d * (len(t) - 1) - 1) // s + 1).unsqueeze(1) * s + t * d - p
            for size, t, (s, p, d) in zip(x.shape[2:], taps, steps, strict=True)
        ]
        return _correlation(x, w.reshape(groups, -1, *w.shape[1:]), bias, coordinates, products)

    w = w.reshape(groups, -1, *w.shape[1:]).transpose(1, 2)
    sizes = [
        (size - 1) * s - 2 * p + d * (len(t) - 1) + 1 + extra
        for size, t, (s, p, d), extra in zip(x.shape[2:], taps, steps, output_padding, strict=True)
    ]
    out = x.new_empty(x.shape[0], groups * w.shape[1], *sizes)
    for remainders in product(*map(range, stride)):
        chosen, coordinates = w, []
        for dim, (r, size, t, (s, p, d)) in enumerate(zip(remainders, sizes, taps, steps, strict=True)):
            meeting = t[(r + p - t * d) % s == 0]
            chosen = chosen.index_select(dim + 3, meeting)
            outputs = torch.arange(r, max(r, size), s)
            coordinates.append((outputs.unsqueeze(1) + p - meeting * d) // s)
        where = tuple(slice(r, None, s) for r, s in zip(remainders, stride, strict=True))
        out[(..., *where)] = _correlation(x, chosen, bias, coordinates, products)
    return out


def _with_taps_first(products: Products, inputs: int) -> Products:
    """products of K counted by (tap, channel), to be called with K counted by (channel, tap)."""

    def turned(k: Tensor, dim: int) -> Tensor:
        return k.unflatten(dim, (inputs, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    return lambda weights, windows: products(turned(weights, 2), turned(windows, 1))


def _correlation(
    x: Tensor, w: Tensor, bias: Tensor | None, coordinates: Coordinates, products: Products
) -> Tensor:
    """w [groups, outputs, inputs, *taps] over the elements of x at `coordinates`, zero outside of x."""
    groups, outputs, length = w.shape[0], w.shape[1], prod(w.shape[2:])
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    windows = x.to(wide)
    for i, at in enumerate(coordinates):
        dim = 2 + 2 * i  # each dimension before has become two: outputs and taps
        size = windows.shape[dim]
        zero = windows.new_zeros(*windows.shape[:dim], 1, *windows.shape[dim + 1 :])
        padded = torch.cat([windows, zero], dim)
        inside = torch.where((at >= 0) & (at < size), at, size)
        windows = padded.index_select(dim, inside.reshape(-1)).unflatten(dim, at.shape)
    # [N, C, out, taps, out, taps, ...] -> [groups * N, length, positions]
    dims = len(coordinates)
    windows = windows.permute(0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2))
    grid = [at.shape[0] for at in coordinates]
    windows = windows.reshape(x.shape[0], groups, length, prod(grid)).transpose(0, 1)
    rows = w.to(wide).reshape(groups, 1, outputs, length).expand(-1, x.shape[0], -1, -1)
    sums = products(rows.flatten(0, 1), windows.flatten(0, 1))
    out = sums.reshape(groups, x.shape[0], outputs, prod(grid)).transpose(0, 1)
    out = out.reshape(x.shape[0], groups * outputs, *grid)
    if bias is not None:
        out = out + bias.to(wide).reshape(-1, *[1] * dims)
    return torch.where(out.isnan(), torch.nan, out).to(x.dtype)
