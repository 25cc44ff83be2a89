"""The same values in other places of memory, with NaN beside them, so that reading it shows."""

from collections.abc import Callable

import torch


def _strided(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, _beside(x, x.shape)], -1)[..., 0]


def _cut_out(x: torch.Tensor) -> torch.Tensor:
    left, right = (_beside(x, (*x.shape[:-1], width)) for width in (2, 5))
    return torch.cat([left, x, right], -1)[..., 2:-5]


def _offset(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([_beside(x, (3,)), x.flatten()])[3:].view(x.shape)


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def _beside(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return x.new_full(shape, torch.nan if x.is_floating_point() or x.is_complex() else 0)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": _transposed,
    "offset": _offset,
    "strided": _strided,
    "cut out": _cut_out,
}
"""Of tensors of at least one dimension: "transposed" (dimensions reversed in memory), "offset" (a view that
starts at an odd address), "strided" (every second element), "cut out" (rows of a wider tensor)."""
