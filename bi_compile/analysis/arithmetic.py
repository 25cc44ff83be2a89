"""Rules of ops that compute: element by element, along lines, over windows, and products."""

from dataclasses import replace

import torch
from torch import fx

from bi_compile.allowed import Allowed
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
    without,
    wrapped,
)
from bi_compile.analysis.call import Call, keep_apart
from bi_compile.analysis.sizes import Size


def pointwise(call: Call) -> Flow:
    rank = call.result.dim() if isinstance(call.result, torch.Tensor) else 0
    flow = joined([(call.flow(node), call.rank(node)) for node in call.tensors], rank)
    if flow.position and call.rounds:
        raise Mixes(COUNT_ENTERS)
    if flow.position and not _changes_nothing(call):
        flow = Flow(flow.axes, ROUTING)
    return keep_apart(call, flow)


def _changes_nothing(call: Call) -> bool:
    """x + 0 and x * 1, which tracing leaves behind."""
    neutral = {"add": 0, "sub": 0, "mul": 1}.get(call.name)
    return neutral is not None and len(call.tensors) == 1 and call.get("other") == neutral


def cast(call: Call) -> Flow:
    """A change of dtype or memory alone."""
    flow = call.flow(call.first)
    if flow.position and call.rounds and not _is_only_counted(call.node):
        raise Mixes(COUNT_ENTERS)
    return flow


def _is_only_counted(node: fx.Node) -> bool:
    """`histc` takes floating-point numbers alone on a CPU: integers become such on their way there."""
    return all(str(user.target).split(".")[1:2] == ["histc"] for user in node.users)


def creation(call: Call) -> Flow:
    return Flow()


def reduction(call: Call) -> Flow:
    rank = call.rank(call.first)
    dims = wrapped(call.get("dims", "dim"), rank)
    flow = call.flow(call.first)
    keepdim = bool(call.get("keepdim", default=False))
    if any(axis.dim in dims for axis in flow.axes):
        if call.first.meta["val"].dtype.is_floating_point:
            raise Mixes(f"it is taken over dims {dims}, {_batch_dims(flow)}")
        flow = flow.move(lambda axis: None if axis.dim in dims else axis)
        return Flow(without(flow, dims, keepdim=keepdim).axes, ROUTING)
    return without(flow, dims, keepdim=keepdim)


def along(call: Call) -> Flow:
    """Scans, sorts and softmax: every result sees a whole line of one dim."""
    rank = call.rank(call.first)
    dims = wrapped(call.get("dim", "self", default=-1) if "dim" in call.arguments else -1, rank)
    flow = call.flow(call.first)
    crossed = [axis for axis in flow.axes if axis.dim in dims]
    if not crossed:
        return flow
    if call.first.meta["val"].dtype.is_floating_point:
        raise Mixes(f"it runs along dim {dims[0]}, {_batch_dims(flow)}")
    return Flow(flow.axes, ROUTING)


def ordering(call: Call) -> tuple[Flow, ...]:
    """sort and topk: as `along`; sorted integers of several samples are rows in an order the data decide."""
    flow = along(call)
    if flow.position != ROUTING:
        return flow, flow
    (dim,) = wrapped(call.get("dim", default=-1), call.rank(call.first))
    rows = Flow(tuple(_ragged(axis) if axis.dim == dim else axis for axis in flow.axes), ROUTING)
    given = call.flow(call.first)
    if given.position == ROUTING and all(axis.ragged for axis in given.axes):
        # The order of an order is its inverse.
        return rows, Flow(tuple(replace(axis, ragged=False) for axis in flow.axes), RETURNING)
    return rows, rows


def _ragged(axis: Axis) -> Axis:
    return replace(axis, ragged=True)


def _batch_dims(flow: Flow) -> str:
    return "and the batch is on " + " and ".join(f"dim {axis.dim}" for axis in flow.axes)


def searchsorted(call: Call) -> Flow:
    """Places of values in sorted lines of the last dim; one line alone serves all values."""
    lines, values = call.arguments["sorted_sequence"], call.flow(call.get("self"))
    rank, flow = call.rank(lines), call.flow(lines)
    if rank - 1 in flow.dims():
        if lines.meta["val"].dtype.is_floating_point:
            raise Mixes("it looks values up among those of every sample")
        raise Unknown("it looks places up in a line that tells of every sample")
    found = joined([(values, rank), (flow, rank)], rank) if rank > 1 else values
    if flow.position:
        found = Flow(found.axes, ROUTING)
    return Flow(found.axes, ROUTING if found.position else None)


def norm(call: Call) -> tuple[Flow, ...]:
    """layer_norm, rms_norm: statistics over the last dims; of a sum, which comes first, in added ones."""
    rank = call.rank(call.first)
    summands = [call.first, *([call.get("more")] if "more" in call.arguments else [])]
    flow = joined([(call.flow(node), rank) for node in summands], rank)
    kept = rank - len(call.get("normalized_shape"))
    if any(axis.dim >= kept for axis in flow.axes):
        raise Mixes(f"it is taken over dims {list(range(kept, rank))}, {_batch_dims(flow)}")
    whole = joined([(call.flow(n), call.rank(n)) for n in call.tensors], rank)
    return (flow,) * (len(summands) - 1) + (whole, flow, flow)


def recurrent(call: Call) -> tuple[Flow, ...]:
    """One direction of a layer: x [T, B, I], states [B, H] -> outputs [T, B, H] and the last states."""
    x, states = call.flow(call.arguments["x"]), call.arguments["state"]
    if any(axis.dim != 1 for axis in x.axes) or any(a.dim for s in states for a in call.flow(s).axes):
        raise Mixes(f"it walks along dim 0 over samples side by side on dim 1, {_batch_dims(x)}")
    if any(call.flow(weight).axes for weight in call.arguments["weights"]):
        raise Unknown("its weights depend on the batch")
    last = joined([(x.move(lambda axis: axis.at(0)), 2), *((call.flow(s), 2) for s in states)], 2)
    return last.move(lambda axis: axis.at(1)), *(last for _ in states)


def product(call: Call) -> Flow:
    """mm, bmm, addmm, baddbmm, product_epilogue, and mm of integers."""
    a, b = _factors(call)
    rank = call.rank(a)
    left, right = call.flow(a), call.flow(b)
    if rank - 1 in left.dims() or rank - 2 in right.dims():
        raise Mixes("it sums over the batch")
    parts = [(left, rank), (right, rank)]
    addend = call.get("c", "self") if call.name in ("addmm", "baddbmm", "product_epilogue") else None
    added = (addend, call.arguments.get("other"))
    parts += [(call.flow(node), call.rank(node)) for node in added if isinstance(node, fx.Node)]
    return keep_apart(call, keep_apart(call, joined(parts, rank), (a, b), inner=2), added)


def _factors(call: Call) -> tuple[fx.Node, fx.Node]:
    if "a" in call.arguments:
        return call.arguments["a"], call.arguments["b"]
    names = ("batch1", "batch2") if "batch1" in call.arguments else ("mat1", "mat2")
    if names[0] in call.arguments:
        return call.arguments[names[0]], call.arguments[names[1]]
    return call.arguments["self"], call.arguments["mat2"]


def distances(call: Call) -> Flow:
    """cdist: rows of a [..., P, M] against rows of b [..., R, M]."""
    a, b = call.arguments["a"], call.arguments["b"]
    rank = call.rank(a)
    left, right = call.flow(a), call.flow(b)
    if rank - 1 in {**left.dims(), **right.dims()}:
        raise Mixes("it sums over the batch")
    right = right.move(lambda axis: axis.at(rank - 1) if axis.dim == rank - 2 else axis)
    return keep_apart(call, joined([(left, rank), (right, rank)], rank), inner=2)


def linear(call: Call) -> Flow:
    x, weight = call.arguments["x"], call.arguments["w"]
    flow, weights = call.flow(x), call.flow(weight)
    rank = call.rank(x)
    if rank - 1 in flow.dims() or 1 in weights.dims():
        raise Mixes("it sums over the batch")
    parts = [(flow, rank), (weights.move(lambda axis: axis.at(0)), 1)]
    if isinstance(other := call.arguments.get("other"), fx.Node):
        parts.append((call.flow(other), rank))
    return joined(parts, rank)


def attention(call: Call) -> tuple[Flow, ...]:
    """Queries, keys and values [..., length, features]; the second result lacks the last dim."""
    rank = call.rank(call.first)
    flows = [(call.flow(n), call.rank(n)) for n in call.tensors]
    if any(axis.dim >= own - 2 for flow, own in flows[:3] for axis in flow.axes):
        raise Mixes("it attends from every sample to the keys of others")
    flow = keep_apart(call, joined(flows, rank), inner=2)
    return flow, flow


def samples_first(call: Call) -> Flow:
    """Convolution, pooling and resampling [B, channels, ...]: each sample by itself."""
    flow = call.flow(call.first)
    if any(axis.dim != 0 for axis in flow.axes):
        raise Mixes(f"its windows reach over several samples, {_batch_dims(flow)}")
    if any(call.flow(node).axes for node in call.tensors[1:]):
        raise Unknown("its weights depend on the batch")
    return flow


def sampled(call: Call) -> Flow:
    """Images [B, channels, ...] looked up at the places [B, ...] of a grid."""
    flows = [call.flow(node) for node in call.tensors]
    if any(axis.dim != 0 for flow in flows for axis in flow.axes):
        raise Mixes("it looks places up in several samples")
    return joined([(flow, 1) for flow in flows], 1)


def transform(call: Call) -> Flow:
    """Fourier transforms over `dim`."""
    rank = call.rank(call.first)
    dims, flow = wrapped(call.get("dim"), rank), call.flow(call.first)
    if any(axis.dim in dims for axis in flow.axes):
        raise Mixes(f"it is taken over dims {dims}, {_batch_dims(flow)}")
    return flow


def matrices(call: Call) -> Flow:
    """Linear algebra on the last two dims; the leading ones stay what they are."""
    flows = [(call.flow(node), call.rank(node)) for node in call.tensors]
    if any(axis.dim >= rank - 2 for flow, rank in flows for axis in flow.axes):
        raise Mixes("its matrices hold several samples")
    if any(rank != flows[0][1] for flow, rank in flows if flow.axes):
        raise Unknown("it broadcasts the batch")
    return joined(flows, flows[0][1])


def vouched(call: Call, *, entry: Allowed) -> Flow:
    """A custom op of which the user says where the batch is."""
    own = entry.batch_dims
    names = set()
    for place, node in enumerate(call.tensors):
        dim = own if isinstance(own, int) else own[place] if place < len(own) else None
        flow = call.flow(node)
        if any(dim is None or axis.dim != dim % call.rank(node) for axis in flow.axes):
            raise Unknown(f"the batch is not on the dim that was vouched for, {_batch_dims(flow)}")
        names |= {axis.name for axis in flow.axes}
    return Flow(tuple(Axis(name, entry.results) for name in sorted(names)))


def batch_statistics(call: Call) -> Flow:
    raise Mixes("in training mode its mean and variance are those of the batch")


def count(call: Call) -> Flow:
    """Counts of integers: bincount, histc."""
    return Flow((), ROUTING if call.flow(call.first).axes else None)


def unique(call: Call) -> Flow:
    """Different values of the whole tensor, and how often and where each stands."""
    if not call.flow(call.first).axes:
        return Flow()
    if call.first.meta["val"].dtype.is_floating_point:
        raise Mixes("it looks for equal values among those of all samples")
    return Flow((), ROUTING)


def iota(call: Call) -> Flow:
    """0, 1, 2, ...: places in the batch where it is as long as the batch and the graph can tell."""
    symbols = call.batch_symbols()
    length: list[Size] = call.result_sizes
    if length and length[0].symbols & symbols:
        names = [name for name, size in call.batches.items() if size == length[0]]
        counts = call.get("start", default=0) == 0 and call.get("step", default=1) == 1
        return Flow((Axis(names[0], 0),), ALIGNED) if names and counts else Flow((), ROUTING)
    return Flow()
