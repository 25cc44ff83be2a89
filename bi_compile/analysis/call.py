"""One op of a graph as the rules see it: arguments by the names of the schema, shapes as sizes, flows."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from bi_compile.analysis.axes import ROUTING, Flow, Mixes, Unknown
from bi_compile.analysis.constants import Constants
from bi_compile.analysis.sizes import ONE, Same, Size, sizes_of


@dataclass(frozen=True)
class Call:
    """node: calls an OpOverload. flows: of every earlier node. batches: the extent of each batch.

    same: symbols of other inputs that stand for one of these extents too. constants: what no input bears on.
    of_samples: the nodes that samples bear upon.
    """

    node: fx.Node
    flows: Mapping[fx.Node, Any]
    batches: Mapping[str, Size]
    constants: Constants
    same: Same = ()
    of_samples: Container[fx.Node] = frozenset()

    @property
    def name(self) -> str:
        """`aten.add.Tensor` -> "add"."""
        return self.node.target._schema.name.split("::", 1)[1]  # type: ignore[union-attr]

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Every argument by its name in the schema, those left to their defaults included."""
        schema = self.node.target._schema.arguments  # type: ignore[union-attr]
        defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
        given = dict(zip([a.name for a in schema], self.node.args, strict=False))
        return {**defaults, **given, **self.node.kwargs}

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of these arguments that was given."""
        return next((self.arguments[name] for name in names if name in self.arguments), default)

    @property
    def first(self) -> fx.Node:
        return self.tensors[0]

    @cached_property
    def tensors(self) -> list[fx.Node]:
        """The arguments that are tensors, those in lists included."""
        return [n for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]

    def flow(self, node: Any) -> Flow:
        """Of an argument; of None and of numbers the empty one. Raises Unknown where it is not known."""
        if not isinstance(node, fx.Node):
            return Flow()
        flow = self.flows.get(node)
        if flow is None:
            raise Unknown("")
        return flow

    def sizes(self, node: fx.Node) -> list[Size]:
        return sizes_of(node.meta["val"].shape, self.same)

    def rank(self, node: fx.Node) -> int:
        return node.meta["val"].dim()

    @property
    def result(self) -> Any:
        """The (first) result as a fake tensor, or what else the op returns."""
        value = self.node.meta.get("val")
        return value[0] if isinstance(value, tuple | list) and value else value

    @cached_property
    def result_sizes(self) -> list[Size]:
        return sizes_of(self.result.shape, self.same)

    @property
    def rounds(self) -> bool:
        """Whether the result is floating-point or complex."""
        if not isinstance(self.result, torch.Tensor):
            return False
        return self.result.dtype.is_floating_point or self.result.dtype.is_complex

    def batch_symbols(self) -> set[Any]:
        """Of sizes that tell of the batch."""
        return self.constants.symbols | {symbol for other, _ in self.same for symbol in other.free_symbols}


def keep_apart(call: Call, flow: Flow, beside: Sequence[Any] | None = None, *, inner: int = 0) -> Flow:
    """The flow of a result with numbers of no sample beside the samples: ROUTING if not the same for each.

    beside: the arguments whose last dims lie beside those of the result; all tensors, if not given.
    inner: how many of these last dims do not, as those of matrices.
    Raises Mixes where these numbers would enter arithmetic.
    """
    rank = call.result.dim() if isinstance(call.result, torch.Tensor) else 0
    outer = Flow(tuple(axis for axis in flow.axes if axis.dim < rank - inner))
    nodes = call.tensors if beside is None else [node for node in beside if node in call.tensors]
    if flow.position or not any(_tell_samples_apart(call, node, outer) for node in nodes):
        return flow
    if call.rounds:
        raise Mixes("every place in the batch has another number there")
    return Flow(flow.axes, ROUTING)


def _tell_samples_apart(call: Call, node: fx.Node, flow: Flow) -> bool:
    rank = call.result.dim() if isinstance(call.result, torch.Tensor) else 0
    for axis in () if call.flow(node).axes else flow.axes:
        beside = axis.at(axis.dim - rank + call.rank(node))
        one_for_all = beside.dim < 0 or call.sizes(node)[beside.dim] == ONE
        if one_for_all or axis.ragged:
            continue
        if call.constants.tell_places_apart(node, beside, call.batches[axis.name]):
            return True
    return False
