"""Values that no tensor input bears upon, computed: places in the batch.

What is made of sizes and numbers alone can be known for any batch. Two sizes of the batch are tried where it
is symbolic; where it is not, the one size of the graph.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from bi_compile.analysis.sizes import ONE, Same, Size

SAMPLES = (4, 6)
"""Even, as a graph may cut the batch in halves."""

_OTHERS = 8
"""The value of symbols that have nothing to do with the batch: such values are about the batch alone."""

_MOST = 1 << 20
"""Elements of the largest value that is worth computing."""


class Constants:
    """batches: the extent of each batch. same: symbols of other inputs that stand for one of these too."""

    def __init__(self, batches: Mapping[str, Size], same: Same = ()) -> None:
        self._symbols = {symbol for size in batches.values() for symbol in size.symbols}
        self._same = same
        self._known: dict[tuple[fx.Node, int], Any] = {}
        self.trials = SAMPLES if self._symbols else SAMPLES[:1]

    def at(self, node: fx.Node, samples: int) -> Any:
        """The value of a node where symbolic batches have that many samples; None if inputs bear upon it."""
        if (node, samples) not in self._known:
            self._known[node, samples] = self._computed(node, samples)
        return self._known[node, samples]

    def size(self, size: Size, samples: int) -> int:
        """The number that a size is."""
        result = size.number
        for factor, power in size.factors:
            result *= self._number(factor, samples) ** power
        return result

    def _number(self, expression: Any, samples: int) -> int:
        expression = expression.subs(list(self._same))
        values = {s: samples if s in self._symbols else _OTHERS for s in expression.free_symbols}
        return int(expression.subs(values))

    def _computed(self, node: fx.Node, samples: int) -> Any:
        target = node.target
        if node.op != "call_function" or not _is_fixed(target):
            return None
        if _elements(node.meta.get("val")) > _MOST:
            return None

        def given(value: fx.Node) -> Any:
            number = value.meta.get("val")
            if isinstance(number, torch.SymInt):
                return self._number(number.node.expr, samples)
            if (found := self.at(value, samples)) is None:
                raise LookupError
            return found

        try:
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), given)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": torch.device("cpu")}
            with _disable_current_modes():  # real tensors, while a graph of fake ones is made
                return target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # whatever cannot be computed for such a batch is not known
            return None


def _is_fixed(target: Any) -> bool:
    """Whether the arguments alone determine what a call returns."""
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in (
        "aten",
        "prims",
        "bi_compile",
    ):
        return False
    random = torch.Tag.nondeterministic_seeded in target.tags
    return not (random or target._schema.is_mutable or "empty" in target._schema.name)


def _elements(value: Any) -> int:
    result = 1
    for size in value.shape if isinstance(value, torch.Tensor) else ():
        result *= size if isinstance(size, int) else 1
    return result


def factored(size: Size | None) -> list[tuple[Size, Size]]:
    """The pairs of factors of a size; of one with symbols only those with 1."""
    if size is None:
        return []
    if size.factors:
        return [(size, ONE), (ONE, size)]
    return [(Size(size.number // n), Size(n)) for n in range(1, size.number + 1) if size.number % n == 0]
