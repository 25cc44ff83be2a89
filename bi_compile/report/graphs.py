"""A final graph of the host and the verdicts on it -> what a report keeps of it."""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from bi_compile.analysis.flow import BatchFlow
from bi_compile.inputs import UserInput
from bi_compile.report import Graph, Input, Verdict
from bi_compile.report.orders import kernel_of

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def describe(
    graph: fx.Graph,
    verdicts: Sequence[Verdict],
    *,
    inputs: Sequence[UserInput],
    flow: BatchFlow,
    batch: Mapping[str, str],
) -> Graph:
    """What a report keeps of `graph`.

    verdicts: of its nodes; those without one (sizes, items of tuples) are passed over.
    inputs: what is known of the forward graph's inputs, in order. flow: the batch in the graph.
    batch: for values through which it was not followed; see `shown`.
    """
    nodes = {node.name: node for node in graph.nodes}
    backward = any(name.startswith("tangents_") for name in nodes)
    entering = []
    for position, node in enumerate(graph.find_nodes(op="placeholder")):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            place = getattr(node.meta.get("desc"), "idx", position)
            known = inputs[place] if not backward and place < len(inputs) else None
            name, text = known.name if known else node.name, flow.value(node) or shown(value, batch)
            entering.append(Input(node.name, name, text, flow.batched(node)))
    listed = {v.node for v in verdicts} | {i.node for i in entering}
    completed = [_complete(v, nodes[v.node], listed, batch) if v.node in nodes else v for v in verdicts]
    return Graph(completed, tuple(entering), _sources(_returned(graph), listed), backward)


def _complete(verdict: Verdict, node: fx.Node, listed: set[str], batch: Mapping[str, str]) -> Verdict:
    return replace(
        verdict,
        inputs=_sources(node.all_input_nodes, listed),
        value=verdict.value or shown(node.meta.get("val"), batch),
        origin=original(node),
        kernel=kernel_of(node),
    )


def original(node: fx.Node) -> str:
    """The op of the model a node was rewritten from, or "" where it is that op."""
    op = str(node.meta.get("original_aten") or node.target).removesuffix(".default")
    return "" if op == str(node.target).removesuffix(".default") else op


def _returned(graph: fx.Graph) -> list[fx.Node]:
    return [node for output in graph.find_nodes(op="output") for node in output.all_input_nodes]


def _sources(nodes: Sequence[fx.Node], listed: set[str]) -> tuple[str, ...]:
    """The listed nodes behind some nodes: an item of a tuple is the op that made the tuple."""
    found: dict[str, None] = {}
    for node in nodes:
        while node.name not in listed and node.target is operator.getitem:
            node = node.all_input_nodes[0]
        if node.name in listed:
            found[node.name] = None
    return tuple(found)


def shown(value: Any, batch: Mapping[str, str]) -> str:
    """A value's dtype and sizes: "f32[B, 12, 64]".

    batch: symbol of the host -> name of the batch it stands for, such as {"s77": "B"}.
    """
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        letters = dtype.rstrip("0123456789")
        sizes = re.sub(r"\b[su]\d+\b", lambda m: batch.get(m[0], m[0]), ", ".join(map(str, value.shape)))
        return f"{_SHORT.get(letters, letters)}{dtype[len(letters) :]}[{sizes}]"
    if isinstance(value, tuple | list):
        return f"({', '.join(shown(item, batch) for item in value if item is not None)})"
    return "" if value is None else batch.get(str(value), str(value))
