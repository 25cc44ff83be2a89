"""An op without a lowering that is known to keep samples apart -> the same op, sample by sample."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from bi_compile.analysis.arithmetic import batch_statistics
from bi_compile.analysis.axes import Flow
from bi_compile.analysis.flow import BatchFlow
from bi_compile.analysis.rules import rule_of
from bi_compile.analysis.sizes import ONE
from bi_compile.templates.isolation import contract

_isolated = torch.ops.bi_compile.isolated.default


def isolate(
    graph: fx.Graph, flow: BatchFlow, needs: Callable[[fx.Node], bool], guesses: Sequence[bool] = ()
) -> bool:
    """Replace, in place, the ops that `needs` names; returns whether any was.

    An op stays, for the check of the graph to refuse, where the batch could not be followed through it, where
    it lies in no dim of its own (or as B*S with S known), or where a size among its arguments is the batch's.
    guesses: for each input whether it is only guessed that all samples share it. What such an input alone
    determines stays too: were the guess wrong, the op would see the whole batch. Vectors are exempt, windows
    and scales for the most part: a transform of one number for each sample is one over the batch.
    """
    changed = False
    inputs = graph.find_nodes(op="placeholder")
    in_doubt = [bool(guess) and not _is_vector(node) for node, guess in zip(inputs, guesses, strict=False)]
    guessed = only_guessed(graph, in_doubt)
    for node in list(graph.nodes):
        flows = flow.flows.get(node)
        first = flows[0] if isinstance(flows, tuple) and flows else flows
        of_samples = (isinstance(first, Flow) and first.axes) or node in flow.pieces
        if node in guessed and not of_samples:
            continue
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and needs(node):
            _drop_unread_vectors(node)
            changed |= _isolate(graph, node, flow)
    return changed


def _is_vector(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 1


def only_guessed(graph: fx.Graph, guesses: Sequence[bool]) -> set[fx.Node]:
    """Nodes on which an input bears of which it is only guessed that all samples share it."""
    inputs = graph.find_nodes(op="placeholder")
    guessed = {node for node, is_guess in zip(inputs, guesses, strict=False) if is_guess}
    for node in graph.nodes:
        if guessed.intersection(node.all_input_nodes):
            guessed.add(node)
    return guessed


def _isolate(graph: fx.Graph, node: fx.Node, flow: BatchFlow) -> bool:
    op: Any = node.target
    if node in flow.findings or flow.flows.get(node) is None or op._schema.is_mutable:
        return False
    if rule_of(op) in (None, batch_statistics):
        return False
    tensors, numbers = _Places(), _Places()

    def replaced(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if not isinstance(value.meta.get("val"), torch.Tensor):
                return {"n": numbers.of(value)}
            if _makes_complex(value) and value.args[0] in flow.flows:
                return {"t": tensors.of(value.args[0]), "as": value.args[1]}
            return {"t": tensors.of(value)}
        return [replaced(item) for item in value] if isinstance(value, tuple | list) else value

    args = [replaced(a) for a in node.args]
    kwargs = {name: replaced(a) for name, a in node.kwargs.items()}
    dims, rows = batch_of(tensors.nodes, flow)
    results = _results_of(node, flow)
    symbols = {symbol for size in flow.batches.values() for symbol in size.symbols}
    if dims is None or results is None or any(_depends(n, symbols) for n in numbers.nodes):
        return False
    try:
        call = contract.encode(op, args, kwargs)
    except TypeError:
        return False
    value, flows = node.meta["val"], flow.flows[node]
    flow.flows.pop(node)
    with graph.inserting_before(node):
        alone = graph.call_function(_isolated, (tensors.nodes, numbers.nodes, call, dims, rows, results))
        alone.meta = {**node.meta, "val": list(value) if isinstance(value, tuple | list) else [value]}
        flow.flows[alone] = flows if isinstance(flows, tuple) else (flows,) * len(results)
        result = alone
        if isinstance(value, torch.Tensor):
            result = graph.call_function(operator.getitem, (alone, 0))
            result.meta = dict(node.meta)
            flow.flows[result] = flows
    node.replace_all_uses_with(result)
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for argument in inputs:
        if _makes_complex(argument) and not argument.users:
            graph.erase_node(argument)
    return True


def _makes_complex(node: fx.Node) -> bool:
    """Whether a node makes complex numbers of real ones: exact, and done best where they are read."""
    is_conversion = node.target is torch.ops.prims.convert_element_type.default
    return is_conversion and node.args[1].is_complex  # type: ignore[union-attr]


def _drop_unread_vectors(node: fx.Node) -> None:
    """Tracing makes `svdvals` compute the singular vectors too; eager mode does not."""
    if node.target is not torch.ops.aten._linalg_svd.default or any(
        user.target is not operator.getitem or user.args[1] != 1 for user in node.users
    ):
        return
    node.args, node.kwargs = (node.args[0], False, False), {}
    values = node.meta["val"]
    node.meta["val"] = (values[0].new_empty(0), values[1], values[2].new_empty(0))


class _Places:
    """Nodes in the order in which they were met."""

    def __init__(self) -> None:
        self.nodes: list[fx.Node] = []

    def of(self, node: fx.Node) -> int:
        if node not in self.nodes:
            self.nodes.append(node)
        return self.nodes.index(node)


def batch_of(nodes: list[fx.Node], flow: BatchFlow) -> tuple[list[int] | None, list[int]]:
    """The dim of each node that holds the batch, -1 for none, and how many of its elements are one sample's.

    None where one holds it otherwise: with another batch, ragged, or in a product that cannot be cut.
    """
    dims, rows = [], []
    for node in nodes:
        axes = flow.flows[node].axes
        if len(axes) > 1 or any(a.ragged or a.outer != ONE or a.inner.factors for a in axes):
            return None, []
        dims.append(axes[0].dim if axes else -1)
        rows.append(axes[0].inner.number if axes else 1)
    return dims, rows


def _results_of(node: fx.Node, flow: BatchFlow) -> list[int] | None:
    value = node.meta["val"]
    flows = flow.flows[node]
    flows = (
        flows
        if isinstance(flows, tuple)
        else (flows,) * (len(value) if isinstance(value, tuple | list) else 1)
    )
    if any(len(f.axes) > 1 or any(a.ragged or a.outer != ONE for a in f.axes) for f in flows):
        return None
    return [f.axes[0].dim if f.axes else 0 for f in flows]


def _depends(number: fx.Node, symbols: set[Any]) -> bool:
    value = number.meta.get("val")
    return isinstance(value, torch.SymInt | torch.SymFloat) and bool(value.node.expr.free_symbols & symbols)
