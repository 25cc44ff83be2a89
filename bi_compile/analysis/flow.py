"""The batch, declared on the inputs of a graph and pushed forward through every op.

The graph may be static or symbolic: the batch is followed from place to place, never recognised by its size.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import fx

from bi_compile.analysis import counts
from bi_compile.analysis.axes import COUNT_ENTERS, RETURNED, ROUTING, Axis, Flow, Mixes, Unknown, shaped
from bi_compile.analysis.call import Call
from bi_compile.analysis.constants import Constants
from bi_compile.analysis.loops import Broken, Loops
from bi_compile.analysis.order import is_check
from bi_compile.analysis.rules import rule_of
from bi_compile.analysis.sizes import ONE, Same, Size, sizes_of

NAMES = ("B", *(f"B{i}" for i in range(2, 10)))

_SHORT = {
    "float32": "f32",
    "float64": "f64",
    "bfloat16": "bf16",
    "float16": "f16",
    "int64": "i64",
    "int32": "i32",
}


@dataclass(frozen=True)
class Finding:
    """Where the batch is mixed, or lost sight of. path: nodes from an input of the graph to this one."""

    mixes: bool
    reason: str
    path: tuple[fx.Node, ...] = ()


@dataclass
class BatchFlow:
    """What is known of every node of one graph."""

    flows: dict[fx.Node, Any] = field(default_factory=dict)
    findings: dict[fx.Node, Finding] = field(default_factory=dict)
    batches: dict[str, Size] = field(default_factory=dict)
    same: Same = ()
    of_samples: set[fx.Node] = field(default_factory=set)
    """What inputs that hold samples bear upon, other than by their sizes."""

    pieces: Mapping[fx.Node, Any] = field(default_factory=dict)
    """What is computed of one sample that a loop took out of the batch."""

    def batched(self, node: fx.Node) -> bool:
        """Whether the node holds data of single samples, as far as is known."""
        flow = self._first(node)
        return flow is None or bool(flow.axes or flow.position) or node in self.pieces

    def value(self, node: fx.Node) -> str:
        """The (first) result with the batch written in it: "f32[B, 12, 64]"; "" where it is not known."""
        value = node.meta.get("val")
        tensor = value[0] if isinstance(value, tuple | list) and value else value
        if not isinstance(tensor, torch.Tensor) or self._first(node) is None:
            return ""
        dtype = str(tensor.dtype).removeprefix("torch.")
        return shaped(sizes_of(tensor.shape, self.same), self._first(node), _SHORT.get(dtype, dtype))

    def _first(self, node: fx.Node) -> Flow | None:
        flow = self.flows.get(node)
        return flow[0] if isinstance(flow, tuple) else flow


def follow(graph: fx.Graph, dims: Sequence[tuple[int, ...]]) -> BatchFlow:
    """Follow the batch through a graph of ATen, prims and canonical ops.

    Gradients add up over the batch by nature: in their graphs, and in any other whose inputs are not those
    that `dims` tells of, no batch is followed and nothing found. Nor is anything in a batch of no samples,
    whose graph holds zeros where the products of the batch would stand.

    dims: for each placeholder the dims that hold a batch, the first of each the first batch and so on; () for
        an input that all samples share. Extents are read off the placeholders' `val`.
    """
    try:
        return _followed(graph, dims, with_loops=True)
    except Broken:
        return _followed(graph, dims, with_loops=False)


def _followed(graph: fx.Graph, dims: Sequence[tuple[int, ...]], *, with_loops: bool) -> BatchFlow:
    """with_loops: let samples be taken out of the batch one by one. Raises Broken if not all are put back."""
    result = BatchFlow()
    inputs = graph.find_nodes(op="placeholder")
    if len(inputs) != len(dims) or any("tangents" in node.name for node in inputs):
        return result
    for node, own in zip(inputs, dims, strict=True):
        sizes = sizes_of(node.meta["val"].shape) if own else []
        axes = tuple(Axis(name, dim) for name, dim in zip(NAMES, own, strict=False) if sizes[dim] != ONE)
        for axis in axes:
            known = result.batches.setdefault(axis.name, sizes[axis.dim])
            # Nothing says that two inputs have equally many samples until an op needs it; the marks do.
            own_symbol, first = sizes[axis.dim].symbol, known.symbol
            if own_symbol is not None and first is not None and own_symbol != first:
                result.same += ((own_symbol, first),)
        result.flows[node] = Flow(axes)
        if axes:
            result.of_samples.add(node)
    result.same += _numbers_of_samples(inputs, result)
    shared = frozenset(node for node in inputs if node not in result.of_samples)
    constants = Constants(result.batches, result.same, shared)
    loops = Loops(result.flows, result.batches, result.of_samples, constants)
    result.pieces = loops.pieces if with_loops else {}
    for node in graph.nodes:
        if result.of_samples.intersection(node.all_input_nodes):
            constants.count(node)
            if not isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
                result.of_samples.add(node)
        looped = loops.flow_of(node) if with_loops else None
        if looped is not None:
            result.flows[node] = looped
        elif node.op == "call_function":
            result.flows[node] = _flow_of(node, result, constants)
        elif node not in result.flows:
            result.flows[node] = Flow()
    _look_at_outputs(graph, result)
    if any(size.number == 0 for size in result.batches.values()):
        result.findings.clear()
    _add_paths(graph, result)
    return result


def _numbers_of_samples(inputs: Sequence[fx.Node], known: BatchFlow) -> Same:
    """Number inputs that stand for the batch: a graph after a break gets its size once more, by itself.

    The one place where a batch is told by its size: the number is symbolic, and no tensor has it for a dim.
    """
    values = [node.meta["val"] for node in inputs]
    dims = [
        size
        for x in values
        if isinstance(x, torch.Tensor)
        for size in x.shape
        if isinstance(size, torch.SymInt)
    ]
    batches = {size.symbol for size in known.batches.values()}
    extents: dict[Any, Any] = {size.node.hint: size.node.expr for size in dims if size.node.expr in batches}
    in_shapes = {symbol for size in dims for symbol in size.node.expr.free_symbols}
    numbers = [n.node for n in values if isinstance(n, torch.SymInt) and n.node.expr.is_Symbol]
    return tuple(
        (n.expr, extents[n.hint])
        for n in numbers
        if n.expr not in in_shapes and n.hint in extents and n.hint not in (None, 1)
    )


def _flow_of(node: fx.Node, known: BatchFlow, constants: Constants) -> Any:
    if node.target is operator.getitem:
        source = known.flows.get(node.args[0])  # type: ignore[arg-type]
        index = node.args[1]
        return source[index] if isinstance(source, tuple) and isinstance(index, int) else source
    if not isinstance(node.meta.get("val"), torch.Tensor | tuple | list):
        return Flow()
    if is_check(node):
        return _for_each_result(node, Flow())
    inputs = [known.flows.get(n) for n in node.all_input_nodes]
    shared = all(isinstance(flow, Flow) and not flow.axes and not flow.position for flow in inputs)
    of_batch = known.batches and (_starts_from_the_batch(node) or constants.have_batch_in(node))
    if shared and not of_batch:
        return _for_each_result(node, Flow())
    rule = rule_of(node.target) if isinstance(node.target, torch._ops.OpOverload) else None
    if rule is None:
        if shared:
            return _for_each_result(node, Flow())
        if None not in inputs:
            known.findings[node] = Finding(False, "no rule says how the batch passes through this op")
        return None
    call = Call(node, known.flows, known.batches, constants, known.same, known.of_samples)
    if node not in known.of_samples:
        return _for_each_result(node, _of_numbers(rule, call))
    return _ruled(node, rule, known, call)


def _of_numbers(rule: Callable[[Call], Any], call: Call) -> Any:
    """What no sample bears upon. Numbers that tell of the batch mix nothing until they meet its samples."""
    try:
        flow = rule(call)
    except (Mixes, Unknown):
        flow = Flow((), ROUTING)
    if isinstance(flow, tuple) or not call.constants.are_known(call.node):
        return counts.of_shared(call, flow)
    if not call.constants.tell_of_batch(call.node):
        return Flow() if len(call.constants.trials) > 1 else flow
    return flow if flow.position else Flow((), ROUTING)


def _ruled(node: fx.Node, rule: Callable[[Call], Any], known: BatchFlow, call: Call) -> Any:
    try:
        if call.rounds and _number_of_samples_enters(call):
            raise Mixes(COUNT_ENTERS)
        return _for_each_result(node, counts.checked(call, rule(call)))
    except Unknown as unknown:
        if str(unknown):
            known.findings[node] = Finding(False, str(unknown))
        return None
    except Mixes as mixes:
        known.findings[node] = Finding(True, str(mixes))
        return _for_each_result(node, _after_mixing(call))


def _number_of_samples_enters(call: Call) -> bool:
    """Whether numbers that tell of the batch, and are no places in it, meet samples."""
    flows = [(call.flow(node), node.meta["val"].dtype) for node in call.tensors]
    return any(flow.axes and not flow.position for flow, _ in flows) and any(
        flow.position and dtype.is_floating_point for flow, dtype in flows
    )


def _look_at_outputs(graph: fx.Graph, known: BatchFlow) -> None:
    """Numbers that tell of other samples, or of how many there are, may choose rows, and are no results."""
    for node in graph.output_node().all_input_nodes:
        flow = known.flows.get(node)
        if not isinstance(flow, Flow) or flow.position != ROUTING or any(a.ragged for a in flow.axes):
            continue
        of_each = node in known.of_samples and flow.axes
        if of_each or node.meta["val"].dtype.is_floating_point:
            maker: Any = node.args[0] if node.target is operator.getitem else node
            known.findings.setdefault(maker, Finding(True, RETURNED))


def _starts_from_the_batch(node: fx.Node) -> bool:
    return str(node.target) in ("prims.iota.default", "aten.arange.default", "aten.arange.start_step")


def _after_mixing(call: Call) -> Flow:
    """A result of the shape of an input still has the batch where that input has it."""
    for node in call.tensors:
        flow = call.flows.get(node)
        if isinstance(flow, Flow) and flow.axes and call.sizes(node) == call.result_sizes:
            return Flow(flow.axes)
    return Flow()


def _for_each_result(node: fx.Node, flow: Any) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, tuple | list) or isinstance(flow, tuple):
        return flow
    return (flow,) * len(value)


def _add_paths(graph: fx.Graph, result: BatchFlow) -> None:
    if not result.findings:
        return
    net = nx.DiGraph((source, node) for node in graph.nodes for source in node.all_input_nodes)
    starts = [node for node in graph.find_nodes(op="placeholder") if result.batched(node) and node in net]
    for node, finding in list(result.findings.items()):
        ways = [way for source in _counts(node, result) if (way := _shortest(net, starts, source))]
        path = (*min(ways, key=len), node) if ways else _shortest(net, starts, node)
        result.findings[node] = Finding(finding.mixes, finding.reason, path)


def _counts(node: fx.Node, known: BatchFlow) -> list[fx.Node]:
    """The inputs that tell of other samples: how these come to a node is what a reader wants to see."""
    return [
        source
        for source in node.all_input_nodes
        if getattr(known.flows.get(source), "position", None)
        or isinstance(source.meta.get("val"), torch.SymInt | torch.SymFloat)
    ]


def _shortest(net: nx.DiGraph, starts: Sequence[fx.Node], node: fx.Node) -> tuple[fx.Node, ...]:
    """The shortest way from one of the starts; () if there is none."""
    if node not in net:
        return ()
    ways = [nx.shortest_path(net, start, node) for start in starts if nx.has_path(net, start, node)]
    return tuple(min(ways, key=len)) if ways else ()
