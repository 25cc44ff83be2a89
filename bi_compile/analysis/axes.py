"""Where the batch lies in a tensor, and how that place moves when the tensor changes its shape.

A dim that holds the batch is a product outer * B * inner, row-major: flattening [B, S] gives B*S with inner
S, flattening [S, B] gives S*B with outer S. So a merged dim stays known until it is split again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bi_compile.analysis.sizes import ONE, Size, product

ALIGNED = "aligned"
ROUTING = "routing"
RETURNING = "returning"

COUNT_ENTERS = "a place in the batch, or a count of samples, enters the arithmetic"
"""Why numbers with a position and samples may not meet."""

RETURNED = "what it returns of a sample tells of the others, or of how many there are"
"""The same of such numbers that leave the graph."""

SIZE_ENTERS = "the number of samples enters the arithmetic"
"""The same of an argument made of the size of the batch."""


@dataclass(frozen=True)
class Axis:
    """One batch in one dim of a tensor.

    name: of the batch: "B", or "B2" for a second one.
    outer, inner: the other factors of the dim, before and after the batch in row-major order.
    ragged: rows of samples in an order and number that the data decide; outer and inner then tell of the dim
        they were drawn from.
    """

    name: str
    dim: int
    outer: Size = ONE
    inner: Size = ONE
    ragged: bool = False

    def at(self, dim: int) -> "Axis":
        return replace(self, dim=dim)


@dataclass(frozen=True)
class Flow:
    """What is known of a value: the places of the batch, and whether its numbers tell a place in the batch.

    axes: at most one for each batch; empty for what holds no sample's data.
    position: None for ordinary values; ALIGNED for 0, 1, 2, ... along the batch; ROUTING for numbers that
        depend on other samples too, such as the order of a sort, or on how many there are; RETURNING for
        those that put rows chosen so back in their places, such as the inverse of that order. All may choose
        rows; none may enter arithmetic.
    """

    axes: tuple[Axis, ...] = ()
    position: str | None = None

    def move(self, place: Callable[[Axis], Axis | None]) -> "Flow":
        """Every axis where `place` puts it; None drops it."""
        moved = (place(axis) for axis in self.axes)
        return replace(self, axes=tuple(axis for axis in moved if axis is not None))

    def dims(self) -> dict[int, Axis]:
        return {axis.dim: axis for axis in self.axes}


class Mixes(Exception):
    """Raised by a rule: the op's result for one sample depends on the others."""


class Unknown(Exception):
    """Raised by a rule: it cannot follow the batch through the op."""


def shaped(text: Sequence[Size], flow: Flow | None, dtype: str) -> str:
    """Readable form of a value: "f32[B, 12, 64]"."""
    dims = [str(size) for size in text]
    for axis in () if flow is None else flow.axes:
        parts = [str(s) for s in (axis.outer, axis.name, axis.inner) if s != ONE]
        if axis.dim < len(dims):
            dims[axis.dim] = f"rows({'*'.join(parts)})" if axis.ragged else "*".join(parts)
    return f"{dtype}[{', '.join(dims)}]"


def reshaped(axis: Axis, batch: Size, before: Sequence[Size], after: Sequence[Size]) -> Axis:
    """The axis after a row-major reshape. Raises Unknown where the batch does not stay within one dim."""
    if axis.ragged:
        return _reshaped_rows(axis, before, after)
    behind = axis.inner * product(list(before[axis.dim + 1 :]))
    for dim in range(len(after)):
        inner = behind.over(product(list(after[dim + 1 :])))
        outer = product(list(after[dim:])).over(behind * batch)
        if inner is not None and outer is not None:
            return Axis(axis.name, dim, outer, inner)
    # The sizes behind may be no products, as those of a padded length cut in chunks; those in front tell too.
    front = product(list(before[: axis.dim]))
    for dim in range(len(after)):
        if after[dim] == before[axis.dim] and product(list(after[:dim])) == front:
            return axis.at(dim)
    raise Unknown("the reshape cuts the batch across dims")


def _reshaped_rows(axis: Axis, before: Sequence[Size], after: Sequence[Size]) -> Axis:
    behind = product(list(before[axis.dim + 1 :]))
    for dim in range(len(after)):
        if after[dim] == before[axis.dim] and product(list(after[dim + 1 :])) == behind:
            return axis.at(dim)
    raise Unknown("the reshape cuts rows that the data chose")


def joined(flows: Sequence[tuple[Flow, int]], rank: int) -> Flow:
    """The flow of values broadcast against each other; each comes with its own rank.

    Raises Mixes where two have the same batch in different places: every sample meets every other.
    """
    found: dict[str, Axis] = {}
    position = None
    for flow, own in flows:
        for axis in flow.axes:
            axis = axis.at(axis.dim + rank - own)
            known = found.setdefault(axis.name, axis)
            if known == axis:
                continue
            if known.dim != axis.dim:
                raise Mixes("it pairs every sample of the batch with every other")
            if known.ragged != axis.ragged:
                raise Unknown("it meets rows that the data chose with rows of the whole batch")
            if not axis.ragged:
                raise Mixes("it pairs samples of the batch with others")
        position = strongest(position, flow.position)
    return Flow(tuple(sorted(found.values(), key=lambda axis: axis.dim)), position)


def strongest(first: str | None, second: str | None) -> str | None:
    return ROUTING if ROUTING in (first, second) else first or second


def without(flow: Flow, dims: Sequence[int], *, keepdim: bool = False) -> Flow:
    """The flow after dims without the batch are reduced."""
    gone = set(dims)

    def place(axis: Axis) -> Axis | None:
        return axis if keepdim else axis.at(axis.dim - sum(d < axis.dim for d in gone))

    return flow.move(place)


def wrapped(dims: Any, rank: int) -> list[int]:
    """Dims as non-negative ints; None and [] mean all."""
    if dims is None or dims == []:
        return list(range(rank))
    return [d % rank if rank else 0 for d in ([dims] if isinstance(dims, int) else dims)]
