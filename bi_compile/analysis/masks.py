"""Rules of ops that take or write elements where a mask says, in order: how many come before decides."""

from dataclasses import replace

from bi_compile.analysis.axes import ROUTING, Flow, Mixes, Unknown, joined
from bi_compile.analysis.call import Call
from bi_compile.analysis.sizes import ONE


def nonzero(call: Call) -> Flow:
    """Places of the elements that are not zero: [count, rank]."""
    flow = call.flow(call.first)
    return Flow(
        tuple(replace(axis, dim=0, ragged=True) for axis in flow.axes[:1]), ROUTING if flow.axes else None
    )


def masked_select(call: Call) -> Flow:
    rank = max(call.rank(node) for node in call.tensors)
    flow = joined([(call.flow(node), call.rank(node)) for node in call.tensors], rank)
    return Flow(tuple(replace(axis, dim=0, ragged=True) for axis in flow.axes[:1]))


def masked_scatter(call: Call) -> Flow:
    """Elements of `source` to where a mask says, by a count over the whole tensor.

    Followed where samples lie beside samples, first of all dims, in order: `bi_compile.passes.masked_scatter`
    sees to it that each takes as many as it brings.
    """
    rank = len(call.result_sizes)
    x, mask, source = call.get("self", "x"), call.get("mask"), call.get("source")
    flow = joined([(call.flow(node), call.rank(node)) for node in (x, mask)], rank)
    given = call.flow(source)
    if not flow.axes and not given.axes:
        return flow
    if not given.axes:
        raise Mixes("it hands out elements that all samples share by a count over the batch")
    axes = (*flow.axes, *given.axes)
    in_front = all(a.dim == 0 and a.outer == ONE and not a.inner.factors and not a.ragged for a in axes)
    if not in_front or len(flow.axes) != 1 or len(given.axes) != 1:
        raise Unknown("it hands out elements by a count over the batch")
    return flow


def look_at_rows(call: Call, flow: Flow, masked: range) -> None:
    """Raises where a mask that reaches over the batch hands out rows by a count that it has not chosen."""
    values = call.arguments["values"]
    place = call.rank(values) - (call.rank(call.get("self", "x")) - masked.stop) - 1
    one_for_all = place < 0 or call.sizes(values)[place] == ONE
    if one_for_all or not any(axis.dim in masked for axis in flow.axes):
        return
    rows = call.flow(values).dims().get(place)
    if rows is None:
        raise Mixes("it hands out rows that all samples share by a count over the batch")
    if not rows.ragged:
        raise Unknown("it hands out rows by a count over the batch")
