"""How attention reads heads on CUDA devices: in whole lines of 16 bytes or, on Hopper, through tensor maps.

A map's blocks have powers of two as columns. A head between two of those has two maps, of blocks beside each
other: padded to the greater one, a quarter or more of what tensor cores multiply would be zeros.
"""

from typing import NamedTuple

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from bi_compile.templates.gpu.row_view import power_of_two


class Columns(NamedTuple):
    """Those of the blocks of a head."""

    near: int
    rest: int = 0
    """Of a block beside it, or 0."""

    @classmethod
    def of(cls, size: int) -> "Columns":
        """For heads of so many numbers; tensor cores multiply 16 columns at least."""
        whole = max(16, power_of_two(size))
        rest = max(16, power_of_two(size - whole // 2))
        return cls(whole // 2, rest) if whole > 64 and rest <= whole // 4 else cls(whole)


def row_strides(x: torch.Tensor) -> list[int]:
    """Of the dims of x [B, H, L, size] along which there is more than one row."""
    return [stride for stride, size in zip(x.stride()[:3], x.shape[:3], strict=True) if size > 1]


def _begins_lines(x: torch.Tensor) -> bool:
    """Whether the numbers of every row of x [B, H, L, size] lie together, from whole 16 bytes on."""
    step = 16 // x.element_size()
    return x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(s % step == 0 for s in row_strides(x))


def mappable(x: torch.Tensor) -> bool:
    """Whether a tensor map can describe x [B, H, L, size]."""
    return _begins_lines(x) and all(s > 0 for s in row_strides(x))


def in_whole_lines(x: torch.Tensor) -> torch.Tensor:
    """x [B, H, L, size], or a copy whose rows begin at whole 16 bytes and end with zeros.

    Read number by number, a tile takes an address for each and spills thousands of bytes.
    """
    step, size = 16 // x.element_size(), x.shape[3]
    if size % step == 0 and _begins_lines(x):
        return x
    copy = x.new_zeros(*x.shape[:3], triton.cdiv(size, step) * step)
    copy[..., :size] = x
    return copy


def tensor_maps(x: torch.Tensor, columns: Columns, keys: int) -> tuple[TensorDescriptor, TensorDescriptor]:
    """Blocks of so many keys of x [B, H, L, size], zeros beyond it: near ones, and those of the rest.

    Without a rest, the near ones twice.
    """
    strides = [stride if size > 1 else x.shape[3] for stride, size in zip(x.stride(), x.shape, strict=True)]
    near, rest = (
        TensorDescriptor(x, list(x.shape), [*strides[:3], 1], [1, 1, keys, size])
        for size in (columns.near, columns.rest or columns.near)
    )
    return near, rest
