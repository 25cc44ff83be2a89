"""A sum of two tensors and its norm -> one op, on CUDA devices: the sum is not read again.

The bits are those of the two, for both round the sum to its dtype first.
"""

import operator
from typing import Any

import torch
from torch import fx

from bi_compile.templates import normalization as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile

_WITH_SUM: dict[Any, Any] = {
    bi.layer_norm.default: bi.added_layer_norm.default,
    bi.rms_norm.default: bi.added_rms_norm.default,
}
_VIEWS = frozenset(
    "view reshape _unsafe_view unsqueeze squeeze permute transpose expand slice select".split()
)


def join_sums_and_norms(graph: fx.Graph) -> bool:
    """Changes a final graph; returns whether it did.

    Left alone where Inductor would compute a term of the sum in the same kernel: it would have to be stored.
    """
    places = {node: place for place, node in enumerate(graph.nodes)}
    changed = False
    for norm in list(graph.nodes):
        total = norm.args[0] if norm.target in _WITH_SUM else None
        if not isinstance(total, fx.Node) or total in norm.args[1:] or not _joins(total):
            continue
        # The new op stands where the norm did, so nothing may need the sum before.
        if all(user is norm or places[user] > places[norm] for user in total.users):
            _join(graph, total, norm, places)
            changed = True
    return changed


def _joins(total: fx.Node) -> bool:
    if total.target != aten.add.Tensor or len(total.args) != 2 or total.kwargs:
        return False
    if not all(isinstance(term, fx.Node) for term in total.args):
        return False
    values: list[Any] = [node.meta.get("val") for node in (total, *total.all_input_nodes)]
    if not all(isinstance(value, torch.Tensor) and value.is_cuda for value in values):
        return False
    alike = len({(value.dtype, str(value.shape)) for value in values}) == 1
    return alike and all(in_memory(term) for term in total.args)


def in_memory(term: Any) -> bool:
    """Whether a term is stored in any case: our ops or the caller wrote it, or one of ours reads it."""
    while is_view(term):
        term = term.args[0]
    source = term.args[0] if term.target is operator.getitem else term
    return source.op != "call_function" or is_ours(source) or _read_by_ours(term)


def _read_by_ours(node: fx.Node) -> bool:
    return any(_read_by_ours(user) if is_view(user) else is_ours(user) for user in node.users)


def is_view(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return packet is not None and packet.__name__ in _VIEWS


def is_ours(node: fx.Node) -> bool:
    return getattr(node.target, "namespace", None) == "bi_compile"


def _join(graph: fx.Graph, total: fx.Node, norm: fx.Node, places: dict[fx.Node, int]) -> None:
    with graph.inserting_before(norm):
        joined = graph.call_function(_WITH_SUM[norm.target], (*total.args, *norm.args[1:]), norm.kwargs)
        joined.meta = {**norm.meta, "val": (total.meta["val"], *norm.meta["val"])}
        results = [graph.call_function(operator.getitem, (joined, i)) for i in range(len(joined.meta["val"]))]
    for result, value in zip(results, joined.meta["val"], strict=True):
        result.meta = {**norm.meta, "val": value}
    for node in (joined, *results):
        places[node] = places[norm]
    total.replace_all_uses_with(results[0])
    for item in list(norm.users):
        number: Any = item.args[1]
        item.replace_all_uses_with(results[1 + number])
        graph.erase_node(item)
    graph.erase_node(norm)
    graph.erase_node(total)
