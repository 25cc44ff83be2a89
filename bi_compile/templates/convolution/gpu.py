"""The op of `contract.py` on CUDA devices: which windows meet which weights, and in which tiles.

A transposed convolution is one launch for each remainder of an output's place by the stride (`gpu_sides`).
"""

import functools
import math
from collections.abc import Sequence
from itertools import product, starmap
from typing import Any, NamedTuple

import torch
import triton

from bi_compile import numerics
from bi_compile.templates.contraction.gpu import product as matrix_product
from bi_compile.templates.contraction.gpu_configs import PRECISION
from bi_compile.templates.convolution import gpu_depthwise
from bi_compile.templates.convolution import gpu_kernels as kernels
from bi_compile.templates.convolution.gpu_layout import channels_last
from bi_compile.templates.convolution.gpu_sides import (
    ABSENT,
    Side,
    of_convolution,
    of_transposed,
    zeros_around,
)
from bi_compile.templates.convolution.gpu_tiles import Tile, choose
from bi_compile.templates.gpu import device
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.registry import implements

Tensor = torch.Tensor

_DIMS = 3


@implements("convolution")
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
    *,
    tile: Tile | gpu_depthwise.Block | None = None,
) -> Tensor:
    """tile: instead of the chosen one, for tests and tuning; a block where the convolution is depthwise."""
    single = groups == 1 and {*w.shape[2:]} == {1} and not any((*padding, *output_padding))
    if tile is None and single and (not transposed or {*stride} == {1}):
        return _of_single_taps(x, w, bias, stride, transposed)
    lists = map(tuple, (stride, padding, dilation, output_padding))
    plan = _plan(
        x.device.index, x.dtype, x.shape, w.shape, bias is not None, *lists, transposed, groups, tile
    )
    out = x.new_empty(plan.shape)
    added = out if bias is None else bias.contiguous()
    # [groups, outputs, inputs, *kernel]
    w = w.unflatten(0, (groups, w.shape[0] // groups))
    w = w.transpose(1, 2) if transposed else w
    x = x.contiguous() if plan.around is None else channels_last(x, plan.around)
    for taps, launch in plan.launches:
        weights = w[taps].flatten(0, 1)
        launch(x, weights.contiguous() if plan.around is None else channels_last(weights), added, out)
    return out


def _of_single_taps(
    x: Tensor, w: Tensor, bias: Tensor | None, stride: Sequence[int], transposed: bool
) -> Tensor:
    """Every window is one element: nothing is gathered, and the products' own kernels are faster."""
    x = x[(..., *(slice(None, None, step) for step in stride))]
    rows = w.flatten(1).t() if transposed else w.flatten(1)
    added = None if bias is None else bias.unsqueeze(1)
    found = matrix_product(rows.expand(x.shape[0], *rows.shape), x.flatten(2), added)
    return found.view(*found.shape[:2], *x.shape[2:])


class _Plan(NamedTuple):
    """How a convolution of given shapes is launched."""

    shape: tuple[int, ...]
    """Of the result."""
    around: list[tuple[int, int]] | None
    """Zeros before and after each dimension of the input; none for a depthwise convolution, not even []."""
    launches: list[tuple[tuple[Any, ...], Launch]]
    """With the part of the kernel that each takes."""


@functools.lru_cache(maxsize=65536)
def _plan(
    index: int,
    dtype: torch.dtype,
    x_shape: torch.Size,
    w_shape: torch.Size,
    bias: bool,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    output_padding: tuple[int, ...],
    transposed: bool,
    groups: int,
    tile: Any,
) -> _Plan:
    dims = zip(x_shape[2:], w_shape[2:], stride, padding, dilation, strict=True)
    if transposed:
        sides = [list(of_transposed(*dim, p)) for dim, p in zip(dims, output_padding, strict=True)]
        outputs = w_shape[1]
    else:
        sides = [[side] for side in starmap(of_convolution, dims)]
        outputs = w_shape[0] // groups
    shape = (x_shape[0], groups * outputs, *(side[0].out_size for side in sides))
    depthwise = gpu_depthwise.is_depthwise(x_shape[1] // groups, groups, w_shape[2:])
    around = None if depthwise else [zeros_around(side) for side in sides]
    if around is not None:
        sides = [[s.padded(*zeros) for s in side] for side, zeros in zip(sides, around, strict=True)]
    channels = (x_shape[0], groups, x_shape[1] // groups, outputs)
    launches = [
        ((..., *(side.met for side in chosen)), launch)
        for chosen in product(*sides)
        if (launch := _launch(index, dtype, *channels, chosen, bias, depthwise, tile)) is not None
    ]
    return _Plan(shape, around, launches)


def _launch(
    index: int,
    dtype: torch.dtype,
    samples: int,
    groups: int,
    inputs: int,
    outputs: int,
    sides: tuple[Side, ...],
    bias: bool,
    depthwise: bool,
    tile: Any,
) -> Launch | None:
    """inputs and outputs: of a group. None where nothing is to be computed."""
    sides = (ABSENT,) * (_DIMS - len(sides)) + sides
    positions = math.prod(side.outputs for side in sides)
    rows = samples * positions
    most = groups * max(
        inputs * math.prod(side.size for side in sides), outputs * math.prod(side.out_size for side in sides)
    )
    if rows * groups * outputs == 0:
        return None
    sizes = [side.out_size for side in sides]
    steps = [math.prod(sizes[d + 1 :]) for d in range(_DIMS)]
    arguments = {
        **_numbered("size", [side.size for side in sides]),
        **_numbered("grid", [side.outputs for side in sides]),
        **_numbered("first", [side.first for side in sides]),
        **_numbered("out", [side.out_step * step for side, step in zip(sides, steps, strict=True)]),
        "out_first": sum(side.out_first * step for side, step in zip(sides, steps, strict=True)),
        "outputs": outputs,
        "out_volume": math.prod(sizes),
        "TAPS": tuple(max(1, side.taps) for side in sides),
        "STRIDE": tuple(side.stride for side in sides),
        "DILATION": tuple(side.dilation for side in sides),
        "BIAS": bias,
    }
    processor = device.processor(index)
    if depthwise:
        block = tile or gpu_depthwise.choose(processor, sides, samples * groups * outputs)
        return gpu_depthwise.launch(arguments, sides, samples, groups, outputs, block)
    k = inputs * math.prod(side.taps for side in sides)
    tile = tile or choose(processor, dtype, groups, inputs, outputs, rows, k)
    double = dtype == torch.float64
    chunk = numerics.CONTRACTION_CHUNK if double else numerics.contraction_gpu_chunk(dtype.itemsize)
    assert chunk % tile.block_k == 0, "a block of K would reach into the next chunk"
    arguments |= {
        "samples": samples,
        "groups": groups,
        "inputs": inputs,
        "K": k,
        "WIDE": max((tile.block_at // positions + 2) * most, groups * outputs * k) >= 2**31,
        "CHUNK": chunk,
        "CHUNKED": k > chunk,
        "WHOLE": inputs % tile.block_k == 0,
        "BLOCK_OUT": tile.block_out,
        "BLOCK_AT": tile.block_at,
        "BLOCK_K": tile.block_k,
        "PIECE": tile.piece,
        "PRECISION": PRECISION[dtype],
        **tile.options(processor.capability),
        **COMPILATION,
    }
    tiles = triton.cdiv(rows, tile.block_at) * groups * triton.cdiv(outputs, tile.block_out)
    return Launch(kernels.correlate, (tiles,), arguments)


def _numbered(name: str, values: Sequence[int]) -> dict[str, int]:
    return {f"{name}_{d}": value for d, value in enumerate(values)}
