"""Nested inputs and outputs: tuples, lists, mappings (a transformers ModelOutput is one) and dataclasses."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, spelled as Python would reach it: `output[0].hidden['x']`."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(tree, (tuple, list)):
        names = getattr(tree, "_fields", None)
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}.{names[i]}" if names else f"{path}[{i}]")
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from leaves(getattr(tree, field.name), f"{path}.{field.name}")
    else:
        yield path, tree


def map_tensors(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same tree of inputs with every tensor changed; anything that is no container stays as it is.

    Mappings come back as their own type when it can be built from a dict, else as a dict.
    """
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        changed = {key: map_tensors(value, change) for key, value in tree.items()}
        try:
            return type(tree)(changed)  # type: ignore[call-arg]
        except TypeError:
            return changed
    if isinstance(tree, (tuple, list)):
        changed = [map_tensors(value, change) for value in tree]
        if hasattr(tree, "_fields"):
            return type(tree)(*changed)
        return type(tree)(changed)
    return tree
