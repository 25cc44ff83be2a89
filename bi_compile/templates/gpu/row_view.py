"""Which elements form a row: the kept and the reduced dims of a tensor, each walked as at most two."""

import functools
import math
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
    def of(cls, shape: Sequence[int], strides: Sequence[int], dims: Sequence[int]) -> "Dims":
        merged: list[tuple[int, int]] = []
        for size, stride in ((shape[d], strides[d]) for d in dims):
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
        # Of no dims 0, which keeps the alignment of what it is added to.
        inner = self.strides[-1] if self.strides else 0
        return (self.strides[0] if len(self.strides) == 2 else 0), inner


@dataclass(frozen=True)
class RowView:
    """A tensor as rows of n elements: element i of row r lies where `kept` and `reduced` say."""

    rows: int
    n: int
    kept: Dims
    reduced: Dims

    @classmethod
    @functools.lru_cache(maxsize=65536)
    def of(cls, shape: torch.Size, strides: tuple[int, ...], reduced: tuple[int, ...]) -> "RowView | None":
        """None for a tensor that takes more than two dims on either side."""
        kept = [d for d in range(len(shape)) if d not in reduced]
        sides = Dims.of(shape, strides, kept), Dims.of(shape, strides, reduced)
        if any(len(side.sizes) > MOST_DIMS for side in sides):
            return None
        rows, n = (math.prod(shape[d] for d in dims) for dims in (kept, reduced))
        return cls(rows, n, *sides)

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


def as_rows(x: torch.Tensor, reduced: Sequence[int]) -> tuple[torch.Tensor, RowView]:
    """x and how to walk it; a tensor of too many dims is copied to rows first, which changes no value."""
    view = RowView.of(x.shape, x.stride(), tuple(reduced))
    if view is not None:
        return x, view
    kept = [d for d in range(x.dim()) if d not in reduced]
    rows = x.permute(*kept, *reduced).contiguous()
    rows = rows.view(math.prod(rows.shape[: len(kept)]), math.prod(rows.shape[len(kept) :]))
    return as_rows(rows, (1,))


def power_of_two(n: int) -> int:
    """The least power of two that is at least n, and 1 for none."""
    return 1 << max(0, n - 1).bit_length()
