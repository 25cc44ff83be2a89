"""Rules of ops that choose elements by the values of other tensors: index, gather, scatter, nonzero."""

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
from bi_compile.analysis.masks import look_at_rows
from bi_compile.analysis.sizes import Size


def embedding(call: Call) -> Flow:
    table, indices = call.tensors[0], call.tensors[1]
    if call.flow(table).axes:
        raise Unknown("the table of the embedding depends on the batch")
    return _by(call, indices, Flow(call.flow(indices).axes))


def gather(call: Call) -> Flow:
    """gather(x, dim, index): along one dim, element by element in the others."""
    x, index = call.get("self", "x"), call.arguments["index"]
    rank = call.rank(x)
    if not rank:
        return Flow()
    (dim,) = wrapped(call.arguments["dim"], rank)
    chosen = _chosen(call, call.flow(x).dims().get(dim), index)
    rest = call.flow(x).move(lambda axis: None if axis.dim == dim else axis)
    flow = joined([(rest, rank), (Flow(call.flow(index).axes), rank)], rank)
    if chosen is None:
        return _by(call, index, flow)
    return Flow((*flow.move(_other_than(chosen)).axes, chosen.at(dim) if chosen.ragged else chosen))


def index_select(call: Call) -> Flow:
    x, index = call.get("self", "x"), call.arguments["index"]
    (dim,) = wrapped(call.arguments["dim"], call.rank(x))
    chosen = _chosen(call, call.flow(x).dims().get(dim), index)
    rest = call.flow(x).move(lambda axis: None if axis.dim == dim else axis)
    rows = call.flow(index).move(lambda axis: axis.at(dim))
    extra = rows.axes if chosen is None else (chosen.at(dim),)
    flow = joined([(rest, call.rank(x)), (Flow(extra), call.rank(x))], call.rank(x))
    return _by(call, index, flow) if chosen is None else flow


def _by(call: Call, places: fx.Node, flow: Flow) -> Flow:
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


def _other_than(chosen: Axis):
    return lambda axis: None if axis.name == chosen.name else axis


def _chosen(call: Call, axis: Axis | None, places: fx.Node) -> Axis | None:
    """What a dim with this axis becomes where `places` choose from it; None if no batch is chosen from.

    Its dim is one of the places' own.
    """
    if axis is None:
        return None
    if (found := _by_place(call, axis, places)) is not None:
        return found
    index = call.flow(places)
    if index.position == ALIGNED or (index.position == RETURNING and axis.ragged):
        return next(own for own in index.axes if own.name == axis.name)
    if index.position:
        return replace(axis, ragged=True)
    if index.axes:
        raise Unknown("the data choose which samples it takes")
    raise Mixes("it takes some samples out of the batch")


def _by_place(call: Call, axis: Axis, places: fx.Node) -> Axis | None:
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
    if any(_is_mask(i) for i in given):
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
            chosen = _chosen(call, axis, given[axis.dim])
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
        result = _by(call, given[dim], result)
    return result


def _counts_samples(index: fx.Node, size: Any) -> bool:
    """Whether an index is 0, 1, ... up to a symbolic size as first met: a graph break made a number of it."""
    while len(index.all_input_nodes) == 1 and not _is_iota(index):
        index = index.all_input_nodes[0]
    if not _is_iota(index) or not isinstance(size, torch.SymInt):
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


def _is_mask(value: Any) -> bool:
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


def scatter(call: Call) -> Flow:
    """scatter, scatter_add, scatter_reduce: self, dim, index and a source of the index's shape."""
    self_, index_ = call.get("self", "x"), call.arguments["index"]
    rank = call.rank(self_)
    if not rank:
        return Flow()
    (dim,) = wrapped(call.arguments["dim"], rank)
    source = call.get("src", "value")
    flow = joined([(call.flow(node), rank) for node in (self_, index_) if isinstance(node, fx.Node)], rank)
    crossed = flow.dims().get(dim)
    if isinstance(source, fx.Node) and call.rank(source):
        given = call.flow(source)
        crossed = crossed or given.dims().get(dim)
        flow = joined([(flow, rank), (given.move(lambda a: None if a.dim == dim else a), rank)], rank)
    if crossed:
        return _returned(call, Flow(flow.move(_other_than(crossed)).axes), dim, crossed, index_)
    return _by(call, index_, Flow(flow.axes))


def index_add(call: Call) -> Flow:
    """index_add, index_copy, index_reduce: rows of `source` into the rows of self that `index` names."""
    self_, source = call.get("self", "x"), call.get("source")
    rank = call.rank(self_)
    (dim,) = wrapped(call.arguments["dim"], rank)
    own, given = call.flow(self_), call.flow(source)
    crossed = own.dims().get(dim) or given.dims().get(dim)
    rest = [(flow.move(lambda a: None if a.dim == dim else a), rank) for flow in (own, given)]
    flow = joined(rest, rank)
    index = call.arguments["index"]
    return _returned(call, flow, dim, crossed, index) if crossed else _by(call, index, flow)


def index_put(call: Call) -> Flow:
    self_, values = call.get("self", "x"), call.arguments["values"]
    rank = call.rank(self_)
    given = list(call.arguments["indices"])
    own = call.flow(self_)
    axes = own.dims()
    for dim, chosen in enumerate(given):
        if axes and dim not in axes and not _is_mask(chosen):
            _by(call, chosen, Flow())
    for dim, chosen in enumerate(given):
        if chosen is None:
            continue
        flow = call.flow(chosen)
        if _is_mask(chosen):
            moved = flow.move(lambda axis, dim=dim: axis.at(axis.dim + dim))
            whole = joined([(own, rank), (Flow(moved.axes), rank)], rank)
            look_at_rows(call, whole, range(dim, dim + call.rank(chosen)))
            return whole
        known = call.constants.at(chosen, call.constants.trials[0]) is not None
        if flow.position == ROUTING or flow.position == ALIGNED or known:
            put = _put_rows(call, chosen).get(dim) if known else None
            origin = axes.get(dim) or put or (flow.axes[0].at(dim) if flow.axes else None)
            if origin is not None:
                rest = own.move(_other_than(origin))
                # Places written where an order leads are the inverse of that order.
                places = RETURNING if call.flow(values).position or _is_iota(values) else None
                return _returned(call, Flow(rest.axes, places), dim, origin, chosen)
        if dim in axes:
            _chosen(call, axes[dim], chosen)
    if any(call.flow(i).axes for i in given if i is not None):
        raise Unknown("rows of the batch are written where the data say")
    written = _written(call, [d for d, chosen in enumerate(given) if chosen is not None])
    return joined([(Flow(own.axes), rank), (written, rank)], rank)


def _put_rows(call: Call, index: fx.Node) -> dict[int, Axis]:
    """The batch of values, as many as places in a dim that `index` names, by that dim."""
    values, rank = call.arguments["values"], call.rank(call.get("self", "x"))
    return call.flow(values).dims() if call.rank(values) == rank and call.rank(index) == 1 else {}


def _written(call: Call, indexed: list[int]) -> Flow:
    """Where the batch of the values comes to lie when indices that all samples share name other dims."""
    values = call.arguments["values"]
    flow, rank = call.flow(values), call.rank(call.get("self", "x"))
    if not flow.axes:
        return Flow()
    width = max(call.rank(call.arguments["indices"][d]) for d in indexed)
    in_order = indexed == list(range(indexed[0], indexed[-1] + 1))
    missing = rank - len(indexed) + width - call.rank(values)

    def place(axis: Axis) -> Axis:
        dim = axis.dim + missing
        if not in_order or indexed[0] <= dim < indexed[0] + width:
            raise Unknown("rows of the batch are written where the data say")
        return axis.at(dim if dim < indexed[0] else dim - width + len(indexed))

    return flow.move(place)


def _is_iota(node: Any) -> bool:
    """Whether these are 0, 1, 2, ...: in a static graph nothing else tells that they are places."""
    return isinstance(node, fx.Node) and str(node.target).split(".")[1:2] in (["iota"], ["arange"])


def _returned(call: Call, rest: Flow, dim: int, axis: Axis, places: fx.Node) -> Flow:
    """Rows put back into a dim of the size they were drawn from."""
    if (put := _put_by_place(call, dim, axis, places)) is not None:
        return Flow((*rest.axes, put), rest.position)
    index = call.flow(places)
    if index.position is None:
        if index.axes:
            raise Unknown("the data choose which samples it writes to")
        raise Mixes("it writes into some samples of the batch")
    batch = call.batches[axis.name]
    size: Size = call.result_sizes[dim]
    outer = size.over(batch * axis.inner)
    if outer is None:
        return Flow((*rest.axes, replace(axis, dim=dim, ragged=True)), rest.position)
    return Flow((*rest.axes, Axis(axis.name, dim, outer, axis.inner)), rest.position)


def _put_by_place(call: Call, dim: int, axis: Axis, places: fx.Node) -> Axis | None:
    """Where the batch lies in a dim into which rows are put; None where inputs bear on their places."""
    if call.constants.at(places, call.constants.trials[0]) is None:
        return None
    for outer, inner in factored(call.result_sizes[dim].over(call.batches[axis.name])):
        put = Axis(axis.name, dim, outer, inner)
        try:
            return put if _by_place(call, put, places) is not None else None
        except Mixes:
            continue
    raise Mixes("it writes samples to other places in the batch")


def grouped(call: Call) -> Flow:
    """Grouped products: x [rows, K], weights [groups, K, N], ends of groups; another tensor of rows."""
    flow, rank = call.flow(call.first), call.rank(call.first)
    if rank - 1 in flow.dims():
        raise Mixes("it sums over the batch")
    other = call.arguments.get("other")
    beside = [(call.flow(other), rank)] if isinstance(other, fx.Node) else []
    return joined([(Flow(flow.axes), rank), *beside], rank)
