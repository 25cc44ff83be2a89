"""Reductions by index on CUDA devices: no atomics; what each slot takes in is sorted first.

A stable sort of the indices leaves the elements of a slot side by side and in index order; then every slot is
the chain of one thread. One index for whole rows (index_add, the gradient of an embedding) is sorted once.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.ordering import ordered, unordered
from bi_compile.templates.reduction.shapes import wrap_dim
from bi_compile.templates.registry import implements

Tensor = torch.Tensor

_BLOCK = 128


@triton.jit
def _take_in(state, element, REDUCE: tl.constexpr):
    if REDUCE == "prod":
        return state * element
    elif REDUCE == "amax":
        return unordered(tl.maximum(ordered(state, "max"), ordered(element, "max")), state.dtype)
    elif REDUCE == "amin":
        return unordered(tl.minimum(ordered(state, "min"), ordered(element, "min")), state.dtype)
    else:
        return state + element


@triton.jit(do_not_specialize=["count", "columns", "slots", "length"])
def _chains(
    x, src, order, starts, out, count, columns, slots, length,
    REDUCE: tl.constexpr, INCLUDE_SELF: tl.constexpr, ALIKE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[slot, column]: x[slot, column], then src[order[g, i], column], i from starts[g, slot] to the next.

    g is the column, or 0 where the columns are ALIKE.
    """
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < count
    slot, column = place // columns, place % columns
    group = tl.zeros_like(column) if ALIKE else column
    begin = tl.load(starts + group * (slots + 1) + slot, mask=there, other=0)
    number = tl.load(starts + group * (slots + 1) + slot + 1, mask=there, other=0) - begin
    kept = functions.widened(tl.load(x + place, mask=there, other=0.0))
    state = kept
    if not INCLUDE_SELF:
        identity: tl.constexpr = (
            1.0 if REDUCE == "prod"
            else -float("inf") if REDUCE == "amax"
            else float("inf") if REDUCE == "amin"
            else 0.0
        )  # fmt: skip
        state = tl.full((BLOCK,), identity, kept.dtype)
    most = tl.max(number, 0)
    for i in range(most):
        more = i < number
        which = tl.load(order + group * length + begin + i, mask=more, other=0)
        element = functions.widened(tl.load(src + which * columns + column, mask=more, other=0.0))
        state = tl.where(more, _take_in(state, element, REDUCE), state)
    if REDUCE == "mean":
        taken = number + 1 if INCLUDE_SELF else number
        state = functions.divide(state, tl.maximum(taken, 1).to(state.dtype))
    state = tl.where(number > 0, state, kept)
    tl.store(out + place, functions.rounded(state, out.dtype.element_ty), mask=there)


def _reduced(x: Tensor, index: Tensor, src: Tensor, reduce: str, include_self: bool) -> Tensor:
    """[slots, columns] of x, with src [length, columns] taken in.

    index: [groups, length], one group for all columns or for each its own.
    """
    slots, columns = x.shape
    out = torch.empty_like(x)
    # As the indexing of PyTorch on CUDA devices: no host waits for the answer.
    torch._assert_async(((index >= 0) & (index < slots)).all(), "index out of range of the slots")
    keys, order = torch.sort(index, dim=1, stable=True)
    ends = torch.arange(slots + 1, device=x.device).expand(index.shape[0], -1)
    starts = torch.searchsorted(keys, ends.contiguous())
    _chains[(triton.cdiv(x.numel(), _BLOCK),)](
        x, src, order, starts, out, x.numel(), columns, slots, index.shape[1], REDUCE=reduce,
        INCLUDE_SELF=include_self, ALIKE=index.shape[0] == 1, BLOCK=_BLOCK, **COMPILATION,
    )  # fmt: skip
    return out


def _same_for_all_columns(index: Tensor, dim: int) -> bool:
    return all(d == dim or size == 1 or index.stride(d) == 0 for d, size in enumerate(index.shape))


@implements("scatter_reduce")
def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, include_self: bool
) -> Tensor:
    if x.dim() == 0:
        return scatter_reduce(
            x.view(1), 0, index.view(1), src.view(1), reduce, include_self
        ).view(())  # fmt: skip
    dim = wrap_dim(dim, x.dim())
    if index.numel() == 0 or x.numel() == 0:
        return _quieten(x.clone(memory_format=torch.contiguous_format))
    # Only the part of x that index covers has anything to take in.
    part, taken = x, src
    for d, size in enumerate(index.shape):
        taken = taken.narrow(d, 0, size)
        part = part if d == dim else part.narrow(d, 0, size)
    first = part.movedim(dim, 0)
    rows = first.reshape(first.shape[0], -1)
    taken = taken.movedim(dim, 0).reshape(index.shape[dim], -1)
    keys = index.movedim(dim, 0)
    if _same_for_all_columns(index, dim):
        keys = keys[(slice(None), *[0] * (index.dim() - 1))][None]
    else:
        keys = keys.reshape(index.shape[dim], -1).t()
    found = _reduced(rows.contiguous(), keys.contiguous(), taken.contiguous(), reduce, include_self)
    found = found.view(first.shape).movedim(0, dim)
    if part.shape == x.shape:
        return found.contiguous()
    out = _quieten(x.clone(memory_format=torch.contiguous_format))
    out[tuple(slice(0, size) for size in part.shape)] = found
    return out


@implements("index_put_add")
def index_put_add(x: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    # What the indices pick from a tensor of flat positions says where each value goes: masks, negative
    # numbers and None are PyTorch's business. Indices of leading dims alone choose rows of what follows.
    given = [i for i in indices if i is not None]
    leading = given and all(i is not None for i in indices[: len(given)])
    dims = sum(i.dim() if i.dtype in (torch.bool, torch.uint8) else 1 for i in given)
    dims = dims if leading else x.dim()
    slots, rest = x.shape[:dims], x.shape[dims:]
    numbers = torch.arange(slots.numel(), device=x.device).view(slots)
    picked = tuple(slice(None) if i is None else i for i in (given if leading else indices))
    places = numbers[picked]
    taken = values.expand(*places.shape, *rest).reshape(places.numel(), rest.numel())
    rows = x.reshape(slots.numel(), rest.numel()).contiguous()
    if places.numel() == 0 or x.numel() == 0:
        return _quieten(rows.clone()).view(x.shape)
    return _reduced(rows, places.reshape(1, -1), taken.contiguous(), "sum", True).view(x.shape)


def _quieten(x: Tensor) -> Tensor:
    """Every NaN the one canonical quiet NaN, in place."""
    return x.masked_fill_(x.isnan(), torch.nan)
