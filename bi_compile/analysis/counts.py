"""The number of samples as a number: it may size what holds the batch, and enter nothing else.

`x.roll(B, 1)`, `x[:, :B]`, `F.pad(x, (0, B))` and `x.topk(B - 2)` give a sample other numbers in another
batch, or more of them, though each of these ops works within samples. Two things tell: an argument that is
made of B and is no size, and a size of the result that is made of B where the batch does not lie.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx

from bi_compile.analysis.axes import ROUTING, SIZE_ENTERS, Flow, Mixes
from bi_compile.analysis.call import Call
from bi_compile.analysis.order import CREATION
from bi_compile.analysis.sizes import Size, product, sizes_of

_SIZES = frozenset("size shape sizes stride strides length repeats split_size split_sizes".split())
"""Arguments that are seen again in the sizes of the result."""

_PLACES = frozenset("start end index".split())
"""Arguments that say which part of a dim is taken; of the batch's dim, the op's rule has looked at them."""

_COPIES = CREATION | frozenset(
    """
    _reshape_alias _unsafe_view broadcast_tensors expand expand_as expand_copy flatten repeat reshape tile
    unflatten view view_as view_copy
    """.split()
)
_PARTS = frozenset("diagonal select squeeze".split())


def checked(call: Call, flow: Any) -> Any:
    """The flow of what samples bear upon: with a position where the number of samples decides its numbers.

    Raises Mixes where these are floating-point.
    """
    reason = SIZE_ENTERS if _is_argument(call) else _sizes_more_than_the_batch(call, flow)
    if reason is None:
        return flow
    if call.rounds:
        raise Mixes(reason)
    return tuple(map(_told, flow)) if isinstance(flow, tuple) else _told(flow)


def of_shared(call: Call, flow: Any) -> Any:
    """The same for what no sample bears upon and cannot be computed: copies for each sample tell nothing."""
    values = call.node.meta.get("val")
    values = values if isinstance(values, tuple | list) else (values,)
    before = _made_of_batch(call, [node.meta["val"] for node in call.tensors])
    after = _made_of_batch(call, values)
    grown = not (after <= before or call.name in _COPIES)
    lost = not (before <= after or call.name in _COPIES | _PARTS)
    if not (grown or lost or _is_argument(call)):
        return flow
    return tuple(map(_told, flow)) if isinstance(flow, tuple) else _told(flow)


def _told(flow: Flow) -> Flow:
    return Flow(flow.axes, ROUTING)


def _is_argument(call: Call) -> bool:
    for name, value in call.arguments.items():
        given = value if isinstance(value, tuple | list) else (value,)
        numbers = any(isinstance(n, fx.Node) and call.constants.is_of_batch(n) for n in given)
        if numbers and name not in _SIZES and not (name in _PLACES and _is_along_the_batch(call)):
            return True
    return False


def _is_along_the_batch(call: Call) -> bool:
    """Of an op that takes a part of a dim."""
    dim = call.get("dim", default=0)
    if not call.tensors or not isinstance(dim, int):
        return False
    return dim % call.rank(call.first) in call.flow(call.first).dims()


def _sizes_more_than_the_batch(call: Call, flow: Any) -> str | None:
    """Why the number of samples is told by a size; None where an argument brought the size along."""
    for value, own in _results(call, flow):
        dims = _sized(call, value, own)
        if dims and not any(_brings(call, node) for node in call.tensors):
            return f"the number of samples decides the size of dim {dims[0]}"
    return None


def _brings(call: Call, node: fx.Node) -> bool:
    flow = call.flows.get(node)
    return node in call.of_samples and isinstance(flow, Flow) and bool(_sized(call, node.meta["val"], flow))


def _results(call: Call, flow: Any) -> Iterator[tuple[torch.Tensor, Flow]]:
    values = call.node.meta.get("val")
    values = values if isinstance(values, tuple | list) else (values,)
    flows = flow if isinstance(flow, tuple) else (flow,) * len(values)
    for value, own in zip(values, flows, strict=False):
        if isinstance(value, torch.Tensor) and own.position is None and call.name not in CREATION:
            yield value, own


def _sized(call: Call, value: torch.Tensor, flow: Flow) -> list[int]:
    """The dims whose size has more of the number of samples in it than the batch that lies there."""
    found = []
    for dim, size in enumerate(sizes_of(value.shape, call.same)):
        here = [axis for axis in flow.axes if axis.dim == dim]
        rest = size.over(product([call.batches[axis.name] for axis in here]))
        if rest is not None and not any(a.ragged for a in here) and rest.symbols & call.batch_symbols():
            found.append(dim)
    return found


def _made_of_batch(call: Call, values: Iterable[Any]) -> set[Size]:
    shapes = [value.shape for value in values if isinstance(value, torch.Tensor)]
    sizes = [size for shape in shapes for size in sizes_of(shape, call.same)]
    return {size for size in sizes if size.symbols & call.batch_symbols()}
