"""Rules of ops that move elements along fixed paths: reshapes, permutations, slices, concatenation, pads."""

from bi_compile.analysis.axes import Axis, Flow, Mixes, Unknown, joined, reshaped, wrapped
from bi_compile.analysis.call import Call, keep_apart
from bi_compile.analysis.sizes import ONE, Size, product


def reshape(call: Call) -> Flow:
    before, after = call.sizes(call.first), call.result_sizes
    flow = call.flow(call.first)
    if before == after:
        return flow
    return flow.move(lambda axis: reshaped(axis, call.batches[axis.name], before, after))


def permute(call: Call) -> Flow:
    rank = call.rank(call.first)
    if call.name in ("t", "numpy_T", "mT"):
        order = list(range(rank))[::-1]
    elif call.name in ("transpose", "swapaxes"):
        order = list(range(rank))
        a, b = wrapped([call.get("dim0", "axis0"), call.get("dim1", "axis1")], rank)
        order[a], order[b] = b, a
    else:
        order = wrapped(call.get("dims"), rank)
    return call.flow(call.first).move(lambda axis: axis.at(order.index(axis.dim)))


def squeeze(call: Call) -> Flow:
    before = call.sizes(call.first)
    dims = wrapped(call.get("dim"), len(before)) if "dim" in call.arguments else range(len(before))
    flow = call.flow(call.first)
    gone = {d for d in dims if before[d] == ONE} - set(flow.dims())
    if len(before) - len(gone) != len(call.result_sizes):
        raise Unknown("a batch of one sample is squeezed away")
    return flow.move(lambda axis: axis.at(axis.dim - sum(d < axis.dim for d in gone)))


def unsqueeze(call: Call) -> Flow:
    (dim,) = wrapped(call.get("dim"), len(call.result_sizes))
    return call.flow(call.first).move(lambda axis: axis.at(axis.dim + (axis.dim >= dim)))


def expand(call: Call) -> Flow:
    shift = len(call.result_sizes) - call.rank(call.first)
    return call.flow(call.first).move(lambda axis: axis.at(axis.dim + shift))


def repeat(call: Call) -> Flow:
    before, after = call.sizes(call.first), call.result_sizes
    shift = len(after) - len(before)

    def place(axis: Axis) -> Axis:
        times = after[axis.dim + shift].over(before[axis.dim])
        if times is None or axis.ragged:
            raise Unknown("rows are repeated a number of times that is not known")
        return Axis(axis.name, axis.dim + shift, axis.outer * times, axis.inner)

    return call.flow(call.first).move(place)


def select(call: Call) -> Flow:
    rank = call.rank(call.first)
    (dim,) = wrapped(call.get("dim"), rank)

    def place(axis: Axis) -> Axis:
        if axis.dim == dim:
            raise Mixes("it takes one sample out of the batch")
        return axis.at(axis.dim - (axis.dim > dim))

    return call.flow(call.first).move(place)


def cut(call: Call) -> Flow:
    """slice, narrow, split, chunk: part of one dim."""
    rank = call.rank(call.first)
    (dim,) = wrapped(call.get("dim", default=0), rank)
    before, after = call.sizes(call.first)[dim], call.result_sizes[dim]
    start = call.get("start", default=0) or 0
    return call.flow(call.first).move(
        lambda axis: _cut(axis, call.batches[axis.name], before, after, start) if axis.dim == dim else axis
    )


def pieces(call: Call) -> tuple[Flow, ...]:
    """split, chunk: all parts of one dim."""
    (dim,) = wrapped(call.get("dim", default=0), call.rank(call.first))
    before, flow = call.sizes(call.first)[dim], call.flow(call.first)
    results, whole = [], True
    for value in call.node.meta["val"]:
        after = Size.of(value.shape[dim], call.same)

        def place(axis: Axis, after: Size = after, whole: bool = whole) -> Axis:
            if axis.dim != dim:
                return axis
            return _cut(axis, call.batches[axis.name], before, after, 0 if whole else -1)

        results.append(flow.move(place))
        # The next part starts at a multiple of the batch if all before it were multiples.
        axis = flow.dims().get(dim)
        whole = whole and (axis is None or after.over(call.batches[axis.name] * axis.inner) is not None)
    return tuple(results)


def _cut(axis: Axis, batch: Size, before: Size, after: Size, start: object) -> Axis:
    if before == after:
        return axis
    rows = batch * axis.inner
    outer = after.over(rows)
    whole = isinstance(start, int) and start >= 0 and Size.of(start).over(rows) is not None
    if axis.ragged or (axis.inner != ONE and outer is None):
        raise Unknown("it cuts rows of several samples")
    if outer is None or not (whole or outer != ONE or not isinstance(start, int)):
        raise Mixes("it takes some samples out of the batch")
    return Axis(axis.name, axis.dim, outer, axis.inner)


def concatenate(call: Call) -> Flow:
    pieces = [node for node in call.tensors if call.rank(node) == len(call.result_sizes)]
    (dim,) = wrapped(call.get("dim", default=0), len(call.result_sizes))
    given = call.get("tensors")
    pieces = [node for node in given if node in pieces] if given else pieces
    flows = [call.flow(node) for node in pieces]
    along = [flow.dims().get(dim) for flow in flows]
    if not any(along):
        flow = joined([(flow, len(call.result_sizes)) for flow in flows], len(call.result_sizes))
        return keep_apart(call, flow)
    first = next(axis for axis in along if axis)
    if any(axis is None or (axis.name, axis.inner) != (first.name, first.inner) for axis in along):
        raise Unknown("it joins rows of the batch to others")
    if any(axis.ragged for axis in along if axis):
        return joined([(flow, len(call.result_sizes)) for flow in flows[:1]], len(call.result_sizes))
    total = call.result_sizes[dim].over(call.batches[first.name] * first.inner)
    if total is None:
        raise Unknown("it joins rows of the batch to others")
    rest = [
        (flow.move(lambda axis: None if axis.dim == dim else axis), len(call.result_sizes)) for flow in flows
    ]
    others = joined(rest, len(call.result_sizes))
    return Flow((*others.axes, Axis(first.name, dim, total, first.inner)), others.position)


def pad(call: Call) -> Flow:
    flow = call.flow(call.first)
    for before, after, axis in zip(
        call.sizes(call.first), call.result_sizes, map(flow.dims().get, range(99)), strict=False
    ):
        if axis is not None and before != after:
            raise Unknown("it pads the batch")
    return flow


def rearrange(call: Call) -> Flow:
    """flip, roll: within dims that do not hold the batch."""
    rank = call.rank(call.first)
    dims = wrapped(call.get("dims", default=[]), rank)
    flow = call.flow(call.first)
    if any(axis.dim in dims for axis in flow.axes):
        raise Mixes("it moves samples to other places in the batch")
    return flow


def windows(call: Call) -> Flow:
    """unfold(x, dim, size, step): windows of one dim, in a new last dim."""
    (dim,) = wrapped(call.get("dimension"), call.rank(call.first))
    flow = call.flow(call.first)
    if any(axis.dim == dim for axis in flow.axes):
        raise Mixes("its windows reach over several samples")
    return flow


def diagonal(call: Call) -> Flow:
    rank = call.rank(call.first)
    dims = wrapped([call.get("dim1", default=0), call.get("dim2", default=1)], rank)
    flow = call.flow(call.first)
    if any(axis.dim in dims for axis in flow.axes):
        raise Mixes("its diagonal takes another element of every sample")
    return flow.move(lambda axis: axis.at(axis.dim - sum(d < axis.dim for d in dims)))


def strided(call: Call) -> Flow:
    """as_strided: followed where it is a plain reshape of a contiguous tensor."""
    flow = call.flow(call.first)
    if not flow.axes:
        return flow
    value, result = call.first.meta["val"], call.result
    same_memory = value.is_contiguous() and result.is_contiguous() and not call.get("storage_offset")
    if same_memory and product(call.sizes(call.first)) == product(call.result_sizes):
        return reshape(call)
    if list(value.shape) == list(result.shape) and list(value.stride()) == list(result.stride()):
        return flow
    raise Unknown("it reads memory by strides")


def placed(call: Call) -> Flow:
    """select_scatter, slice_scatter, diagonal_scatter: a copy of self with `src` in a part of it."""
    rank = len(call.result_sizes)
    self_, source = call.tensors[0], call.tensors[-1]
    (dim,) = wrapped(call.get("dim", "dim1", default=0), rank)
    own, given = call.flow(self_), call.flow(source)
    if any(axis.dim == dim for axis in own.axes) and call.sizes(source) != call.sizes(self_):
        raise Mixes("it writes into some samples of the batch")
    alike = (self_, source)
    if call.name != "slice_scatter":
        given, alike = given.move(lambda axis: axis.at(axis.dim + (axis.dim >= dim))), (self_,)
    flow = joined([(own, rank), (given, rank)], rank)
    beside = flow.move(lambda axis: None if axis.dim == dim else axis)
    return Flow(flow.axes, keep_apart(call, beside, alike).position)
