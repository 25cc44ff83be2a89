"""Ops that hosts carry out in place -> on a copy, where they also read what they write into."""

from typing import Any

import torch
from torch import fx

_DONE_IN_PLACE = frozenset(
    "index_put _unsafe_index_put as_strided_scatter slice_scatter select_scatter diagonal_scatter".split()
)


def keep_what_is_read(graph: fx.Graph) -> bool:
    """Copy the first argument of an op that also reads it by another: `x.index_copy(1, i, x)`.

    Changes the graph; returns whether it did.
    Inductor writes into the first argument if no later op reads it. It does not look at the op itself, which
    would read elements that it has already overwritten.
    """
    changed = False
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target.overloadpacket.__name__ not in _DONE_IN_PLACE:
            continue
        destination = node.args[0]
        read: list[fx.Node] = []
        fx.map_arg((node.args[1:], node.kwargs), read.append)
        if any(_memory(other) == _memory(destination) for other in read):
            with graph.inserting_before(node):
                copy = graph.call_function(torch.ops.aten.clone.default, (destination,))
            copy.meta = {**destination.meta, "val": destination.meta["val"].clone()}
            node.update_arg(0, copy)
            changed = True
    return changed


def _memory(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else node
