"""Rules of ops that put elements where the values of other tensors say: scatter, index_add, index_put."""

from dataclasses import replace

from torch import fx

from bi_compile.analysis.axes import (
    ALIGNED,
    RETURNING,
    ROUTING,
    Axis,
    Flow,
    Mixes,
    Unknown,
    joined,
    wrapped,
)
from bi_compile.analysis.call import Call, keep_apart
from bi_compile.analysis.constants import factored
from bi_compile.analysis.indexing import axis_by_place, axis_chosen, is_iota, is_mask, other_than, told_by
from bi_compile.analysis.masks import look_at_rows
from bi_compile.analysis.sizes import Size


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
        return _returned(call, Flow(flow.move(other_than(crossed)).axes), dim, crossed, index_)
    return told_by(call, index_, keep_apart(call, Flow(flow.axes), (self_, source)))


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
    flow = keep_apart(call, flow, (self_, source))
    return _returned(call, flow, dim, crossed, index) if crossed else told_by(call, index, flow)


def index_put(call: Call) -> Flow:
    self_, values = call.get("self", "x"), call.arguments["values"]
    rank = call.rank(self_)
    given = list(call.arguments["indices"])
    own = call.flow(self_)
    axes = own.dims()
    for dim, chosen in enumerate(given):
        if axes and dim not in axes and not is_mask(chosen):
            told_by(call, chosen, Flow())
    for dim, chosen in enumerate(given):
        if chosen is None:
            continue
        flow = call.flow(chosen)
        if is_mask(chosen):
            moved = flow.move(lambda axis, dim=dim: axis.at(axis.dim + dim))
            whole = joined([(own, rank), (Flow(moved.axes), rank)], rank)
            look_at_rows(call, whole, range(dim, dim + call.rank(chosen)))
            return whole
        known = call.constants.at(chosen, call.constants.trials[0]) is not None
        if flow.position == ROUTING or flow.position == ALIGNED or known:
            put = _put_rows(call, chosen).get(dim) if known else None
            origin = axes.get(dim) or put or (flow.axes[0].at(dim) if flow.axes else None)
            if origin is not None:
                rest = own.move(other_than(origin))
                # Places written where an order leads are the inverse of that order.
                places = RETURNING if call.flow(values).position or is_iota(values) else None
                return _returned(call, Flow(rest.axes, places), dim, origin, chosen)
        if dim in axes:
            axis_chosen(call, axes[dim], chosen)
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
            return put if axis_by_place(call, put, places) is not None else None
        except Mixes:
            continue
    raise Mixes("it writes samples to other places in the batch")
