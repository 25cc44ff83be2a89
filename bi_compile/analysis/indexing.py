"""Rules of ops that choose elements by the values of other tensors: embedding, gather, index."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from bi_compile.analysis.axes import (
    ALIGNED,
    COUNT_ENTERS,
    RETURNING,
    ROUTING,
    Axis,
    Flow,
    Mixes,
    Unknown,
    joined,
    wrapped,
)
from bi_compile.analysis.call import Call
from bi_compile.analysis.constants import factored


def embedding(call: Call) -> Flow:
    table, indices = call.tensors[0], call.tensors[1]
    if call.flow(table).axes:
        raise Unknown("the table of the embedding depends on the batch")
    return told_by(call, indices, Flow(call.flow(indices).axes))


def gather(call: Call) -> Flow:
    """gather(x, dim, index): along one dim, element by element in the others."""
    x, index = call.get("self", "x"), call.arguments["index"]
    rank = call.rank(x)
    if not rank:
        return Flow()
    (dim,) = wrapped(call.arguments["dim"], rank)
    chosen = axis_chosen(call, call.flow(x).dims().get(dim), index)
    rest = call.flow(x).move(lambda axis: None if axis.dim == dim else axis)
    flow = joined([(rest, rank), (Flow(call.flow(index).axes), rank)], rank)
    if chosen is None:
        return told_by(call, index, flow)
    return Flow((*flow.move(other_than(chosen)).axes, chosen.at(dim) if chosen.ragged else chosen))


def index_select(call: Call) -> Flow:
    x, index = call.get("self", "x"), call.arguments["index"]
    (dim,) = wrapped(call.arguments["dim"], call.rank(x))
    chosen = axis_chosen(call, call.flow(x).dims().get(dim), index)
    rest = call.flow(x).move(lambda axis: None if axis.dim == dim else axis)
    rows = call.flow(index).move(lambda axis: axis.at(dim))
    extra = rows.axes if chosen is None else (chosen.at(dim),)
    flow = joined([(rest, call.rank(x)), (Flow(extra), call.rank(x))], call.rank(x))
    return told_by(call, index, flow) if chosen is None else flow


def told_by(call: Call, places: fx.Node, flow: Flow) -> Flow:
    """The flow of what `places` choose from, or put into, a dim without the batch.

    Those of rows that the data chose are these rows' own. Raises Mixes where others tell of the batch, and
    the numbers they choose are floating-point.
    """
    known = call.flow(places)
    if known.position is None or (known.axes and all(axis.ragged for axis in known.axes)):
        return flow
    if call.rounds:
        raise Mixes(COUNT_ENTERS)
    return Flow(flow.axes, ROUTING)


def other_than(chosen: Axis):
    return lambda axis: None if axis.name == chosen.name else axis


def axis_chosen(call: Call, axis: Axis | None, places: fx.Node) -> Axis | None:
    """What a dim with this axis becomes where `places` choose from it; None if no batch is chosen from.

    Its dim is one of the places' own.
    """
    if axis is None:
        return None
    if (found := axis_by_place(call, axis, places)) is not None:
        return found
    index = call.flow(places)
    if index.position == ALIGNED or (index.position == RETURNING and axis.ragged):
        return next(own for own in index.axes if own.name == axis.name)
    if index.position:
        return replace(axis, ragged=True)
    if index.axes:
        raise Unknown("the data choose which samples it takes")
    raise Mixes("it takes some samples out of the batch")


def axis_by_place(call: Call, axis: Axis, places: fx.Node) -> Axis | None:
    """Where the batch lies in rows taken from a dim with this axis; None where inputs bear on the places.

    Raises Mixes unless the places of each sample, wherever those lie, are all of that sample's own rows.
    """
    constants, batch = call.constants, call.batches[axis.name]
    trials = []
    for samples in constants.trials:
        if axis.ragged or (rows := constants.at(places, samples)) is None:
            return None
        number, inner = (constants.size(size, samples) for size in (batch, axis.inner))
        whole = number * inner * constants.size(axis.outer, samples)
        trials.append((samples, number, rows % whole // inner % number))
    for dim, size in enumerate(call.sizes(places)):
        for outer, inner in factored(size.over(batch)):
            own = Axis(axis.name, dim, outer, inner)
            if all(_lie_at(own, owners, number, call, samples) for samples, number, owners in trials):
                return own
    raise Mixes("it moves samples to other places in the batch, or takes some out of it")


def _lie_at(axis: Axis, owners: torch.Tensor, samples: int, call: Call, trial: int) -> bool:
    """Whether every row belongs to the sample whose place in `axis` it has."""
    places = torch.arange(owners.shape[axis.dim]) // call.constants.size(axis.inner, trial) % samples
    return bool((owners.movedim(axis.dim, -1) == places).all())


def index(call: Call) -> Flow:
    """x[i, j, ...] with tensors, None or booleans for the leading dims."""
    x, rank = call.get("self", "x"), call.rank(call.get("self", "x"))
    given = list(call.arguments["indices"])
    if any(is_mask(i) for i in given):
        return _masked(call, x, given)
    indexed = [d for d, i in enumerate(given) if i is not None]
    width = max(call.rank(given[d]) for d in indexed)
    together = indexed == list(range(indexed[0], indexed[-1] + 1))
    front = indexed[0] if together else 0
    flow, rows = call.flow(x), joined([(call.flow(given[d]), call.rank(given[d])) for d in indexed], width)
    axes: list[Axis] = []
    for axis in flow.axes:
        if axis.dim in indexed:
            if _counts_samples(given[axis.dim], x.meta["val"].shape[axis.dim]):
                raise Unknown("it takes as many samples as there were when this graph was traced")
            chosen = axis_chosen(call, axis, given[axis.dim])
            assert chosen is not None
            # Numbers counted in the index's own dims, which may be fewer than those of all indices together.
            dim = (
                chosen.dim + width - call.rank(given[axis.dim])
                if not chosen.ragged
                else _long_dim(call, given[axis.dim], width)
            )
            axes.append(chosen.at(front + dim))
        else:
            before = sum(d not in indexed for d in range(axis.dim))
            axes.append(axis.at(before + (width if not together or axis.dim > front else 0)))
    if not rank:
        return Flow()
    result = joined([(Flow(tuple(axes), flow.position), 0), (_without_known(rows, axes, front), 0)], 0)
    for dim in set(indexed) - set(flow.dims()):
        result = told_by(call, given[dim], result)
    return result


def _counts_samples(index: fx.Node, size: Any) -> bool:
    """Whether an index is 0, 1, ... up to a symbolic size as first met: a graph break made a number of it."""
    while len(index.all_input_nodes) == 1 and not is_iota(index):
        index = index.all_input_nodes[0]
    if not is_iota(index) or not isinstance(size, torch.SymInt):
        return False
    (length,) = index.meta["val"].shape
    return isinstance(length, int) and length == size.node.hint


def _without_known(rows: Flow, axes: list[Axis], front: int) -> Flow:
    known = {axis.name for axis in axes if axis.ragged}
    moved = rows.move(lambda axis: None if axis.name in known else axis.at(axis.dim + front))
    return Flow(moved.axes)


def _long_dim(call: Call, chosen: fx.Node, width: int) -> int:
    """The dim in which an index holds its rows: that of its own axis, or its only one."""
    own = call.flow(chosen).axes
    return (own[0].dim if own else call.rank(chosen) - 1) + width - call.rank(chosen)


def is_mask(value: Any) -> bool:
    return isinstance(value, fx.Node) and str(value.meta["val"].dtype) in ("torch.bool", "torch.uint8")


def _masked(call: Call, x: fx.Node, given: list[Any]) -> Flow:
    if len([i for i in given if i is not None]) > 1:
        raise Unknown("it chooses by masks and indices at once")
    dim = next(d for d, i in enumerate(given) if i is not None)
    reach = range(dim, dim + call.rank(given[dim]))
    axes = []
    for axis in call.flow(x).axes:
        gone = call.rank(given[dim]) - 1
        axes.append(
            replace(axis, dim=dim, ragged=True)
            if axis.dim in reach
            else axis.at(axis.dim - gone * (axis.dim > dim))
        )
    return Flow(tuple(axes))


def grouped(call: Call) -> Flow:
    """Grouped products: x [rows, K], weights [groups, K, N], ends of groups; another tensor of rows."""
    flow, rank = call.flow(call.first), call.rank(call.first)
    if rank - 1 in flow.dims():
        raise Mixes("it sums over the batch")
    other = call.arguments.get("other")
    beside = [(call.flow(other), rank)] if isinstance(other, fx.Node) else []
    return joined([(Flow(flow.axes), rank), *beside], rank)


def is_iota(node: Any) -> bool:
    """Whether these are 0, 1, 2, ...: in a static graph nothing else tells that they are places."""
    return isinstance(node, fx.Node) and str(node.target).split(".")[1:2] in (["iota"], ["arange"])
