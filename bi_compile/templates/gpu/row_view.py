"""Which elements form a row: the kept and the reduced dims of a tensor, each walked as at most two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MOST_DIMS = 2


@dataclass(frozen=True)
class Dims:
    """Dims (size, stride), outermost first, of which neighbours that can be walked as one are one."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, x: torch.Tensor, dims: Sequence[int]) -> "Dims":
        merged: list[tuple[int, int]] = []
        for size, stride in ((x.shape[d], x.stride(d)) for d in dims):
            if size == 1:
                continue
            if merged and merged[-1][1] == size * stride:
                merged[-1] = (merged[-1][0] * size, stride)
            else:
                merged.append((size, stride))
        return cls(tuple(size for size, _ in merged), tuple(stride for _, stride in merged))

    @property
    def inner(self) -> int:
        """The size of the inner one of two dims; with fewer, all."""
        return self.sizes[-1] if self.sizes else 1

    def outer_and_inner_stride(self) -> tuple[int, int]:
        inner = self.strides[-1] if self.strides else 1
        return (self.strides[0] if len(self.strides) == 2 else 0), inner


@dataclass(frozen=True)
class RowView:
    """x as rows of n elements: element i of row r lies where `kept` and `reduced` say.

    A tensor that takes more than two dims on either side is copied to rows first, which changes no value.
    """

    x: torch.Tensor
    rows: int
    n: int
    kept: Dims
    reduced: Dims

    @classmethod
    def of(cls, x: torch.Tensor, reduced: Sequence[int]) -> "RowView":
        kept = [d for d in range(x.dim()) if d not in reduced]
        n = 1
        for d in reduced:
            n *= x.shape[d]
        rows = x.numel() // n if n else 1
        if not n:
            for d in kept:
                rows *= x.shape[d]
        sides = Dims.of(x, kept), Dims.of(x, reduced)
        if any(len(side.sizes) > MOST_DIMS for side in sides):
            x = x.permute(*kept, *reduced).contiguous().view(rows, n)
            sides = Dims.of(x, [0]), Dims.of(x, [1])
        return cls(x, rows, n, *sides)

    @property
    def columns(self) -> bool:
        """Whether neighbouring rows lie side by side, and the elements of a row do not."""
        return self.kept.strides[-1:] == (1,) and self.reduced.strides[-1:] not in ((), (1,))

    def arguments(self) -> dict[str, int | bool]:
        """What `row_offset` and `element_offset` need, by the names that kernels give it."""
        kept_outer, kept_inner = self.kept.outer_and_inner_stride()
        outer, inner = self.reduced.outer_and_inner_stride()
        return {
            "kept_size": self.kept.inner,
            "kept_outer": kept_outer,
            "kept_inner": kept_inner,
            "element_size": self.reduced.inner,
            "element_outer": outer,
            "element_inner": inner,
            "KEPT_TWO": len(self.kept.sizes) == 2,
            "ELEMENT_TWO": len(self.reduced.sizes) == 2,
            "WIDE": self._extent() >= 2**31,
        }

    def _extent(self) -> int:
        return sum((n - 1) * s for n, s in zip(self.reduced.sizes, self.reduced.strides, strict=True)) + 1


def power_of_two(n: int) -> int:
    """The least power of two that is at least n, and 1 for none."""
    return 1 << max(0, n - 1).bit_length()
