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
dim the op runs once. On the CPU the memory of results of 128 KB and more is kept for later ones once they are
free, at most 64 MB of it. Any dtype the op takes, complex numbers included. No gradients: it stands in final
graphs alone.
"""

import functools
import json
from typing import Any, NamedTuple

import torch

from bi_compile.templates.isolation import oracle
from bi_compile.templates.registry import load

Tensor = torch.Tensor

_library = torch.library.Library("bi_compile", "FRAGMENT")
_library.define(
    "isolated(Tensor[] tensors, SymInt[] numbers, str call, int[] dims, int[] rows, int[] results)"
    " -> Tensor[]",
    # Each part is copied to contiguous memory, so Inductor may choose the layout.
    tags=(torch.Tag.flexible_layout, torch.Tag.pt2_compliant_tag),
)


def encode(op: torch._ops.OpOverload, args: Any, kwargs: Any) -> str:
    """`call` for an op whose tensors and sizes are given as {"t": place} and {"n": place}.

    {"t": place, "as": dtype} is a tensor of which each sample's part is converted first.
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
def _decoded(call: str) -> oracle.Call:
    """What `encode` put into a call."""

    def decode(value: Any) -> Any:
        match value:
            case list():
                return [decode(item) for item in value]
            case {"t": place, **rest}:
                return oracle.Part(place, decode(rest.get("as")))
            case {"n": place}:
                return oracle.Number(place)
            case {"torch": name}:
                return getattr(torch, name)
            case {"device": name}:
                return torch.device(name)
        return value

    given = json.loads(call)
    op: Any = torch.ops
    for part in given["op"].split("."):
        op = getattr(op, part)
    return oracle.Call(
        op, decode(given["args"]), {name: decode(value) for name, value in given["kwargs"].items()}
    )


class _Boxed(NamedTuple):
    """A call as the C++ loop takes it.

    arguments: one for each of the op's schema, None where tensors go.
    slots: (which argument, what of which tensor) for every tensor; those of one argument are a list there.
    """

    name: str
    overload: str
    arguments: list[Any]
    slots: list[tuple[int, oracle.Part]]


@functools.lru_cache(maxsize=1024)
def _boxed(call: str) -> _Boxed | None:
    """The call in this form, or None: an argument of unclear type is left to Python's conversions."""
    op, args, kwargs = _decoded(call)
    schema = op._schema
    given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
    arguments, slots = [], []
    for position, argument in enumerate(schema.arguments):
        value = given.get(argument.name, argument.default_value)
        items = value if isinstance(value, list) else [value]
        kinds = {int if isinstance(item, oracle.Number) else type(item) for item in items}
        wants = str(argument.type)
        if len(kinds) != 1 or kinds == {list} or (kinds == {int} and "float" in wants):
            return None
        if kinds == {oracle.Part}:
            if isinstance(value, list) and wants != "List[Tensor]":
                return None
            slots += [(position, part) for part in items]
            value = None
        arguments.append(value)
    return _Boxed(schema.name, schema.overload_name, arguments, slots)


def _isolated(
    tensors: list[Tensor],
    numbers: list[int],
    call: str,
    dims: list[int],
    rows: list[int],
    results: list[int],
) -> list[Tensor]:
    boxed = _boxed(call)
    samples = oracle.samples_of(tensors, dims, rows)
    if boxed is None or samples == 0 or not all(t.is_cpu for t in tensors):
        return oracle.isolated(_decoded(call), tensors, numbers, dims, rows, results)
    load("isolation")
    places = [part.place for _, part in boxed.slots]
    return torch.ops.bi_compile.isolated_calls(
        [tensors[place] for place in places],
        boxed.name,
        boxed.overload,
        [oracle.filled(argument, [], numbers) for argument in boxed.arguments],
        [argument for argument, _ in boxed.slots],
        [dims[place] for place in places],
        [rows[place] for place in places],
        [part.dtype for _, part in boxed.slots],
        samples,
        results,
    )


def _fake(
    tensors: list[Tensor],
    numbers: list[int],
    call: str,
    dims: list[int],
    rows: list[int],
    results: list[int],
) -> list[Tensor]:
    whole = _decoded(call).results(tensors, numbers)
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in whole]


_library.impl("isolated", _isolated, "CompositeExplicitAutograd")
torch.library.register_fake("bi_compile::isolated", _fake, lib=_library)
