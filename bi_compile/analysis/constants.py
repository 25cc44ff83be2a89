"""Values that no sample bears upon, computed: places in the batch, and how many there are.

What is made of sizes and numbers alone can be known for any batch. Two sizes of the batch are tried where it
is symbolic; where it is not, the one size of the graph. Where weights are among what the number of samples
enters, `w[:B]`, random numbers stand in for them.
"""

import math
import operator
from collections.abc import Container, Mapping
from typing import Any
from zlib import crc32

import torch
from torch import fx
from torch._dispatch.python import no_python_dispatcher
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._python_dispatch import _disable_current_modes

from bi_compile.analysis.axes import Axis
from bi_compile.analysis.sizes import ONE, Same, Size, sizes_of

SAMPLES = (4, 6)
"""Even, as a graph may cut the batch in halves."""

_OTHERS = 8
"""The value of symbols that have nothing to do with the batch: such values are about the batch alone."""

_MOST = 1 << 20
"""Elements of the largest value that is worth computing."""

_MOST_OF_WEIGHTS = 1 << 22
"""The same for weights and what is made of them."""


class Constants:
    """batches: the extent of each batch. same: symbols of other inputs that stand for one of these too.

    shared: inputs that hold no samples.
    """

    def __init__(
        self, batches: Mapping[str, Size], same: Same = (), shared: Container[fx.Node] = frozenset()
    ) -> None:
        self.symbols = {symbol for size in batches.values() for symbol in size.symbols}
        self._same = same
        self._shared = shared
        self._known: dict[tuple[fx.Node, int, bool], Any] = {}
        self._made_of_batch: dict[fx.Node, bool] = {}

    def at(self, node: fx.Node, samples: int) -> Any:
        """The value of a node where symbolic batches have that many samples; None if inputs bear upon it."""
        return self._at(node, samples, stand_ins=False)

    def _at(self, node: fx.Node, samples: int, *, stand_ins: bool) -> Any:
        key = (node, samples, stand_ins)
        if key not in self._known:
            self._known[key] = self._computed(node, samples, stand_ins=stand_ins)
        return self._known[key]

    def _tried(self, node: fx.Node, samples: int) -> Any:
        """As `at`, or as it would be for some weights where the number of samples bears upon it, too."""
        return self._at(node, samples, stand_ins=self.have_batch_in(node))

    def count(self, node: fx.Node) -> None:
        """Sizes that the data of the batch decide, such as how many of its elements are not zero.

        They tell of the batch as its own size does.
        """
        self.symbols |= _decided_by_data([node]) - _decided_by_data(node.all_input_nodes)

    @property
    def trials(self) -> tuple[int, ...]:
        """The numbers of samples for which values are tried."""
        return SAMPLES if self.symbols else SAMPLES[:1]

    def are_known(self, node: fx.Node) -> bool:
        """Whether the value of a node is known for every trial: no sample bears upon it."""
        return all(self._tried(node, samples) is not None for samples in self.trials)

    def have_batch_in(self, node: fx.Node) -> bool:
        """Whether the number of samples, where it is symbolic, stands among what a node is made of."""
        if node not in self._made_of_batch:
            self._made_of_batch[node] = any(
                self.is_of_batch(value) or self.have_batch_in(value) for value in node.all_input_nodes
            )
        return self._made_of_batch[node]

    def is_of_batch(self, node: fx.Node) -> bool:
        """Whether a node is a number that tells how many samples there are."""
        number = node.meta.get("val")
        if not isinstance(number, torch.SymInt | torch.SymFloat):
            return False
        return bool(number.node.expr.subs(list(self._same)).free_symbols & self.symbols)

    def tell_of_batch(self, node: fx.Node) -> bool:
        """Whether the value of a node differs with the number of samples, or along them.

        A dim whose extent differs is taken to hold the samples; whether it is, is seen when it meets them.
        False where the batch has a fixed size, and for what is not known.
        """
        values = [self._tried(node, samples) for samples in self.trials]
        if not all(isinstance(value, torch.Tensor) for value in values):
            return False
        for dim in range(values[0].dim()):
            if any(value.shape[dim] != values[0].shape[dim] for value in values):
                alone = self._of_one_sample(values, dim)
                if alone is None:
                    return True
                values = alone
        return not all(_same_numbers(value, values[0]) for value in values)

    def _of_one_sample(self, values: list[torch.Tensor], dim: int) -> list[torch.Tensor] | None:
        """The values with only the first sample's part of a dim, if every other sample's is the same."""
        each = [value.shape[dim] // samples for value, samples in zip(values, self.trials, strict=True)]
        whole = [value.shape[dim] % samples for value, samples in zip(values, self.trials, strict=True)]
        if any(whole) or any(rows != each[0] for rows in each):
            return None
        for inner in [n for n in range(1, each[0] + 1) if each[0] % n == 0]:
            cut = [
                value.unflatten(dim, (each[0] // inner, samples, inner))
                for value, samples in zip(values, self.trials, strict=True)
            ]
            if all(_all_alike(value, dim + 1) for value in cut):
                return [value.narrow(dim + 1, 0, 1).flatten(dim, dim + 2) for value in cut]
        return None

    def tell_places_apart(self, node: fx.Node, axis: Axis, batch: Size) -> bool:
        """Whether a value that lies along `axis` differs from one sample to the next, as far as is known.

        A weight that no number of samples has cut is as long as a batch of a fixed size.
        """
        samples = self.trials[0]
        value = self._at(node, samples, stand_ins=True)
        if not isinstance(value, torch.Tensor):
            return False
        cut = [self.size(size, samples) for size in (axis.outer, batch, axis.inner)]
        if value.shape[axis.dim] < (rows := math.prod(cut)):
            return False
        return not _all_alike(value.narrow(axis.dim, 0, rows).unflatten(axis.dim, cut), axis.dim + 1)

    def size(self, size: Size, samples: int) -> int:
        """The number that a size is."""
        result = size.number
        for factor, power in size.factors:
            result *= self._number(factor, samples) ** power
        return result

    def _number(self, expression: Any, samples: int) -> int:
        return int(self._value(expression, samples))

    def _value(self, expression: Any, samples: int) -> Any:
        expression = expression.subs(list(self._same))
        values = {s: samples if s in self.symbols else _OTHERS for s in expression.free_symbols}
        return expression.subs(values)

    def _computed(self, node: fx.Node, samples: int, *, stand_ins: bool) -> Any:
        if _elements(node.meta.get("val")) > (_MOST_OF_WEIGHTS if stand_ins else _MOST):
            return None
        target = node.target
        weight = stand_ins and (node.op == "get_attr" or node in self._shared)
        if not weight and (node.op != "call_function" or not _is_fixed(target)):
            return None

        def given(value: fx.Node) -> Any:
            number = value.meta.get("val")
            if isinstance(number, torch.SymInt):
                return self._number(number.node.expr, samples)
            if isinstance(number, torch.SymFloat):
                return float(self._value(number.node.expr, samples))
            if (found := self._at(value, samples, stand_ins=stand_ins)) is None:
                raise LookupError
            return found

        try:
            if weight:
                return self._stand_in(node, samples)
            args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), given)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": torch.device("cpu")}
            # Real tensors, and kernels that load when first called, while a graph of fake ones is made.
            with _disable_current_modes(), no_python_dispatcher():
                return target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # whatever cannot be computed for such a batch is not known
            return None

    def _stand_in(self, node: fx.Node, samples: int) -> torch.Tensor | None:
        """Random numbers for a weight, the same in every trial.

        None for integers, which may have to be in some range.
        """
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
            return None
        shape = [self.size(size, samples) for size in sizes_of(value.shape, self._same)]
        with _disable_current_modes(), no_python_dispatcher():
            generator = torch.Generator().manual_seed(crc32(node.name.encode()))
            return torch.randn(shape, generator=generator).to(value.dtype)


def _all_alike(value: torch.Tensor, dim: int) -> bool:
    return _same_numbers(value, value.narrow(dim, 0, min(1, value.shape[dim])).expand_as(value))


def _same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | (a != a) & (b != b)).all())


def _decided_by_data(nodes: list[fx.Node]) -> set[Any]:
    """The symbols of such sizes."""
    return set(free_unbacked_symbols([v for node in nodes if (v := node.meta.get("val")) is not None]))


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
