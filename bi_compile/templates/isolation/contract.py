"""Any op, run sample by sample: right by construction, slow.

Op
    bi_compile::isolated(Tensor[] tensors, SymInt[] numbers, str call, int[] dims, int[] rows, int[] results)
        -> Tensor[]

    call: the op and its arguments as JSON, see `encode`; "t" and "n" stand for tensors and numbers by place.
    dims: for each tensor the dim that holds the batch, or -1 for one that all samples share.
    rows: how many elements of that dim belong to one sample: 1, or S where it is B*S.
    results: the dim of each result along which the samples are joined.

What a sample gets is the op's result on its own part of the tensors, each contiguous and aligned as new
memory is: the same call, on the same shapes, strides and alignments, whatever the batch. Without any batch
dim the op runs once. Any dtype the op takes, complex numbers included. No gradients: it stands in final
graphs alone.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

_ALIGNMENT = 64  # bytes: c10::gAlignment; CUDA's allocator gives 512

_library = torch.library.Library("bi_compile", "FRAGMENT")
_library.define(
    "isolated(Tensor[] tensors, SymInt[] numbers, str call, int[] dims, int[] rows, int[] results)"
    " -> Tensor[]",
    # Each part is copied to contiguous memory, so Inductor may choose the layout.
    tags=(torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag),
)


def encode(op: torch._ops.OpOverload, args: Any, kwargs: Any) -> str:
    """`call` for an op whose tensors and sizes are given as {"t": place} and {"n": place}.

    Raises TypeError for an argument that JSON cannot hold and that is no dtype.
    """
    return json.dumps({"op": str(op), "args": args, "kwargs": kwargs}, default=_named, sort_keys=True)


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise TypeError(f"{value!r} cannot be kept in a call")


def op_of(call: str) -> str:
    """The name of the op in a call: "aten._fft_r2c.default"."""
    return json.loads(call)["op"]


@functools.lru_cache(maxsize=1024)
def _decoded(call: str) -> tuple[Any, list[Any], dict[str, Any]]:
    """The op of a call and its arguments, in which `_Place` stands for tensors and numbers."""

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, what),) = value.items()
        if kind in ("t", "n"):
            return _Place(kind == "t", what)
        return torch.device(what) if kind == "device" else getattr(torch, what)

    given = json.loads(call)
    op: Any = torch.ops
    for part in given["op"].split("."):
        op = getattr(op, part)
    return op, decode(given["args"]), {name: decode(value) for name, value in given["kwargs"].items()}


class _Place(NamedTuple):
    is_tensor: bool
    number: int


def _calls(call: str, tensors: Sequence[Iterable[Tensor]], numbers: Sequence[Any]) -> Iterator[list[Tensor]]:
    """The results of the op for each sample in turn. tensors: for each place what the samples get there."""
    op, args, kwargs = _decoded(call)

    def column(value: Any) -> Iterable[Any]:
        if isinstance(value, _Place):
            return tensors[value.number] if value.is_tensor else repeat(numbers[value.number])
        if isinstance(value, list) and value:
            return map(list, zip(*map(column, value), strict=False))
        return repeat(value)

    for own in zip(*map(column, (*args, *kwargs.values())), strict=False):
        result = op(*own[: len(args)], **dict(zip(kwargs, own[len(args) :], strict=True)))
        yield list(result) if isinstance(result, tuple | list) else [result]


def _isolated(
    tensors: list[Tensor],
    numbers: list[int],
    call: str,
    dims: list[int],
    rows: list[int],
    results: list[int],
) -> list[Tensor]:
    samples = next((t.shape[d] // n for t, d, n in zip(tensors, dims, rows, strict=True) if d >= 0), 0)
    if samples == 0:
        whole = _calls(call, [[_copy(t)] for t in tensors], numbers)
        return [_copy(result) for result in next(whole)]
    split = [
        [*map(_as_new, t.split(n, d))] if d >= 0 else [_as_new(t)] * samples
        for t, d, n in zip(tensors, dims, rows, strict=True)
    ]
    calls = _calls(call, split, numbers)
    parts = next(calls)
    joined = [_repeated(part, samples, dim) for part, dim in zip(parts, results, strict=True)]
    places = (t.tensor_split(samples, dim) for t, dim in zip(joined, results, strict=True))
    # Put in place at once: the memory of the parts is used again, and still in the cache.
    for place, part in zip(zip(*places, strict=True), chain([parts], calls), strict=True):
        for to, result in zip(place, part, strict=True):
            to.copy_(result)
    return joined


def _copy(part: Tensor) -> Tensor:
    return part.clone(memory_format=torch.contiguous_format)


def _as_new(part: Tensor) -> Tensor:
    """The part in contiguous memory with the alignment of the allocators, on which libraries choose loops."""
    return part if part.is_contiguous() and part.data_ptr() % _ALIGNMENT == 0 else _copy(part)


def _repeated(part: Tensor, samples: int, dim: int) -> Tensor:
    shape = list(part.shape)
    shape[dim] *= samples
    return part.new_empty(shape)


def _fake(
    tensors: list[Tensor],
    numbers: list[int],
    call: str,
    dims: list[int],
    rows: list[int],
    results: list[int],
) -> list[Tensor]:
    whole = next(_calls(call, [[t] for t in tensors], numbers))
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in whole]


_library.impl("isolated", _isolated, "CompositeExplicitAutograd")
torch.library.register_fake("bi_compile::isolated", _fake, lib=_library)
