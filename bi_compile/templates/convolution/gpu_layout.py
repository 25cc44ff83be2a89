"""The operands of a convolution with their channels last, the input among its zeros."""

import functools
import math
from collections.abc import Sequence

import torch
import triton

from bi_compile.templates.convolution import gpu_kernels as kernels
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.gpu.row_view import power_of_two

Tensor = torch.Tensor

_DIMS = 3


def channels_last(x: Tensor, around: Sequence[tuple[int, int]] = ()) -> Tensor:
    """x [N, C, *size] as contiguous [N, *size, C], with so many zeros before and behind each dimension."""
    around = tuple(around) or ((0, 0),) * (x.dim() - 2)
    last = x.movedim(1, -1)
    if last.is_contiguous() and not any(map(any, around)):
        return last
    sizes = [sum(zeros) + size for zeros, size in zip(around, x.shape[2:], strict=True)]
    out = x.new_empty((x.shape[0], *sizes, x.shape[1]))
    if out.numel():
        _launch(x.device.index, x.dtype, x.shape, x.stride(), around)(x, out)
    return out


@functools.lru_cache(maxsize=65536)
def _launch(
    index: int,
    dtype: torch.dtype,
    shape: torch.Size,
    strides: tuple[int, ...],
    around: tuple[tuple[int, int], ...],
) -> Launch:
    absent = _DIMS - len(around)
    sizes = (1,) * absent + shape[2:]
    before = (0,) * absent + tuple(b for b, _ in around)
    to = (1,) * absent + tuple(b + size + a for (b, a), size in zip(around, shape[2:], strict=True))
    steps = (0,) * absent + strides[2:]
    extent = sum((n - 1) * abs(s) for n, s in zip(shape[1:], strides[1:], strict=True))
    channels, places = shape[1], math.prod(to)
    block_channels = min(64, power_of_two(channels))
    block_at = min(power_of_two(places), 4096 // block_channels)
    arguments = {
        "channels": channels, "x_sample": strides[0], "x_channel": strides[1],
        **{f"size_{d}": size for d, size in enumerate(sizes)},
        **{f"x_{d}": step for d, step in enumerate(steps)},
        **{f"before_{d}": zeros for d, zeros in enumerate(before)},
        **{f"to_{d}": size for d, size in enumerate(to)},
        "WIDE": max(extent, places * channels) >= 2**31,
        "BLOCK_AT": block_at, "BLOCK_CHANNELS": block_channels, "num_warps": 4, **COMPILATION,
    }  # fmt: skip
    blocks = triton.cdiv(places, block_at) * triton.cdiv(channels, block_channels)
    return Launch(kernels.channels_last, (shape[0] * blocks,), arguments)
