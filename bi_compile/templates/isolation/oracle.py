"""The loop over the samples in plain torch: what runs on CUDA devices, and what the C++ loop must equal."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

_ALIGNMENT = 64  # bytes: c10::gAlignment; CUDA's allocator gives 512


class Part(NamedTuple):
    """An argument: a sample's part of one of the tensors, converted to dtype if there is one."""

    place: int
    dtype: torch.dtype | None = None


class Number(NamedTuple):
    """An argument: one of the numbers."""

    place: int


class Call(NamedTuple):
    """A call of an op in which `Part` and `Number` stand for tensors and numbers."""

    op: torch._ops.OpOverload
    args: list[Any]
    kwargs: dict[str, Any]

    def results(self, parts: Sequence[Tensor], numbers: Sequence[Any]) -> list[Tensor]:
        args = filled(self.args, parts, numbers)
        kwargs = {name: filled(value, parts, numbers) for name, value in self.kwargs.items()}
        found = self.op(*args, **kwargs)
        return list(found) if isinstance(found, tuple | list) else [found]


def filled(value: Any, parts: Sequence[Tensor], numbers: Sequence[Any]) -> Any:
    """An argument with everything in its place."""
    match value:
        case list():
            return [filled(item, parts, numbers) for item in value]
        case Part(place, dtype):
            return parts[place] if dtype is None else parts[place].to(dtype)
        case Number(place):
            return numbers[place]
    return value


def isolated(
    call: Call,
    tensors: Sequence[Tensor],
    numbers: Sequence[Any],
    dims: Sequence[int],
    rows: Sequence[int],
    results: Sequence[int],
) -> list[Tensor]:
    """The results of `call` for each sample, joined; see the contract."""
    samples = samples_of(tensors, dims, rows)
    if samples == 0:
        return [_copy(result) for result in call.results([_copy(t) for t in tensors], numbers)]
    parts = [
        [*map(_as_new, t.split(n, d))] if d >= 0 else [_as_new(t)] * samples
        for t, d, n in zip(tensors, dims, rows, strict=True)
    ]
    found = zip(*(call.results(own, numbers) for own in zip(*parts, strict=True)), strict=True)
    return [torch.cat(each, dim) for each, dim in zip(found, results, strict=True)]


def samples_of(tensors: Sequence[Tensor], dims: Sequence[int], rows: Sequence[int]) -> int:
    """How many samples there are; 0 also where no tensor has a batch dim."""
    return next((t.shape[d] // n for t, d, n in zip(tensors, dims, rows, strict=True) if d >= 0), 0)


def _copy(part: Tensor) -> Tensor:
    return part.clone(memory_format=torch.contiguous_format)


def _as_new(part: Tensor) -> Tensor:
    """The part in contiguous memory with the alignment of the allocators, on which libraries choose loops."""
    return part if part.is_contiguous() and part.data_ptr() % _ALIGNMENT == 0 else _copy(part)
