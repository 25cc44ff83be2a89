"""The inputs of a graph from Dynamo: whose they are and which of them are the user's own tensors."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from bi_compile.batch import marked


def real_inputs(graph: fx.Graph) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The user's tensors with their fake counterparts: no parameters, buffers or scalars."""
    for node in graph.find_nodes(op="placeholder"):
        argument, seen = node.meta.get("grapharg"), node.meta.get("example_value")
        source = _source(node)
        if argument is None or source is None or not isinstance(seen, torch.Tensor) or seen.dim() == 0:
            continue
        tensor = argument.example
        if (
            isinstance(tensor, torch.Tensor)
            and not isinstance(tensor, torch.nn.Parameter)
            and not _is_owned(source)
        ):
            yield tensor, seen


@dataclass(frozen=True)
class UserInput:
    """An input of a graph from Dynamo.

    name: what the user calls it. owned: whether it is a parameter or buffer. captured: whether it is a tensor
    of a closure or a global, without a mark. tensor: the user's own argument; None for all of these and for
    what is no tensor.
    """

    name: str
    owned: bool
    tensor: torch.Tensor | None = None
    captured: bool = False

    def shared_by_guess(self, dims: Sequence[int]) -> bool:
        """Whether nobody said that the input, of these batch dims, is shared, and its size leaves it open."""
        unmarked = self.tensor is not None and marked(self.tensor) is None and self.tensor.shape[0] != 1
        return not dims and (self.captured or unmarked)


def user_inputs(graph: fx.Graph) -> list[UserInput]:
    """The inputs of a graph from Dynamo, in order."""
    real = {seen: tensor for tensor, seen in real_inputs(graph)}
    found = []
    for node in graph.find_nodes(op="placeholder"):
        source, seen = _source(node), node.meta.get("example_value")
        if source is None:
            found.append(UserInput(node.name, False))
        else:
            name = str(source.name() if callable(source.name) else source.name)
            name = re.sub(r"\._(modules|parameters|buffers)\b", "", name)
            name = re.sub(r"\['(\w+)'\]", r".\1", name).removeprefix("L.")
            tensor = real.get(seen) if isinstance(seen, torch.Tensor) else None
            captured = tensor is not None and marked(tensor) is None and _is_captured(source)
            found.append(UserInput(name, _is_owned(source), None if captured else tensor, captured))
    return found


def _source(node: fx.Node) -> Any:
    """Where Dynamo has an input from; while it is tracing, the node itself does not say so yet."""
    return getattr(node, "_dynamo_source", None) or getattr(node.meta.get("grapharg"), "source", None)


def batch_symbols(module: fx.GraphModule, dims: Sequence[Sequence[int]]) -> dict[str, str]:
    """The symbols that stand for batches in a graph from Dynamo, whose inputs hold them on `dims`."""
    found = {}
    for node, own in zip(module.graph.find_nodes(op="placeholder"), dims, strict=True):
        for number, d in enumerate(own):
            size = node.meta["example_value"].shape[d]
            if not isinstance(size, int):
                found.setdefault(str(size), f"B{number + 1}" if number else "B")
    return found


def _is_captured(source: Any) -> bool:
    while hasattr(source, "base"):
        source = source.base
    return not getattr(source, "is_input", False)


def _is_owned(source: Any) -> bool:
    guard = source.guard_source
    return guard.is_unspecialized_nn_module() or guard.is_specialized_nn_module()
