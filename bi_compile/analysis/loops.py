"""Loops over the samples of a batch: each is taken out, the same is done to all, and they are put back.

    torch.stack([f(sample) for sample in x])

Taken by itself, to take one sample out of a batch is to mix. Here what is computed of a sample is told by the
place it was taken from, and what is put together must be all samples, in order, each computed alike: by the
same ops with the same arguments. Python unrolls such loops, so their graphs are those of one batch size.
"""

import operator
from collections.abc import Hashable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from bi_compile.analysis.axes import Axis, Flow, wrapped
from bi_compile.analysis.constants import Constants
from bi_compile.analysis.sizes import ONE, Size

_SMALL = 1024
_PUT = ("select_scatter", "slice_scatter")


@dataclass(frozen=True)
class _Piece:
    """What is computed of one sample: of which batch, its place there, and how it was computed."""

    batch: str
    place: int
    way: int


@dataclass(frozen=True)
class _Filled:
    """A tensor into which samples are put one by one: along `dim`, `count` so far."""

    batch: str
    dim: int
    count: int
    way: int


class Broken(Exception):
    """Samples that were taken out of the batch meet others, or are not all put back."""


class Loops:
    """flows: of every earlier node. batches: the extent of each batch. of_samples: what samples bear upon.

    pieces: the nodes that hold one sample, or what is computed of it alone.
    """

    def __init__(
        self,
        flows: Mapping[fx.Node, Any],
        batches: Mapping[str, Size],
        of_samples: Set[fx.Node],
        constants: Constants,
    ) -> None:
        self._flows = flows
        self._batches = batches
        self._of_samples = of_samples
        self._constants = constants
        self._taken: dict[fx.Node, Axis] = {}
        self._filled: dict[fx.Node, _Filled] = {}
        self._ways: dict[Hashable, int] = {}
        self._way_of: dict[fx.Node, int] = {}
        self.pieces: dict[fx.Node, _Piece] = {}

    def flow_of(self, node: fx.Node) -> Any:
        """The flow of a node that a loop made, None of any other. Raises Broken."""
        if node.op == "output":
            return self._returned(node)
        if node.op != "call_function":
            return None
        if node.target is operator.getitem and node.args[0] in self._taken:
            return self._one(node, node.args[0].args[0], int(node.args[1]), node.args[0])  # type: ignore
        if (axis := self._takes_out(node)) is not None:
            return self._take(node, axis)
        inputs = node.all_input_nodes
        pieces = [self.pieces[n] for n in inputs if n in self.pieces]
        if not pieces and not (node.users and any(n in self._filled for n in inputs)):
            return None
        if _name(node) in _PUT and node.args[1] in self.pieces:
            return self._put(node, self.pieces[node.args[1]])  # type: ignore[index]
        if len({(piece.batch, piece.place) for piece in pieces}) > 1:
            return self._put_together(node)
        if (
            not pieces
            or not _is_pure(node)
            or any(n not in self.pieces and self._tells_of_batch(n) for n in inputs)
        ):
            raise Broken
        self.pieces[node] = _Piece(pieces[0].batch, pieces[0].place, self._way(node))
        value = node.meta.get("val")
        return (Flow(),) * len(value) if isinstance(value, tuple | list) else Flow()

    def _tells_of_batch(self, node: fx.Node) -> bool:
        return (
            node in self._of_samples
            or self._constants.is_of_batch(node)
            or bool(getattr(self._flows.get(node), "position", None))
        )

    def _takes_out(self, node: fx.Node) -> Axis | None:
        """The axis from which a node takes single samples of a batch of known size."""
        name, source = _name(node), node.args[0] if node.args else None
        if name not in ("select", "slice", "unbind", "split", "split_with_sizes"):
            return None
        flow = self._flows.get(source)  # type: ignore[arg-type]
        if not isinstance(flow, Flow) or len(flow.axes) != 1 or flow.position:
            return None
        (axis,) = flow.axes
        (dim,) = wrapped(_argument(node, "dim", 0), source.meta["val"].dim())  # type: ignore[union-attr]
        plain = axis.outer == ONE and axis.inner == ONE and not axis.ragged
        if dim != axis.dim or not plain or self._batches[axis.name].factors:
            return None
        values = node.meta["val"] if name in ("split", "split_with_sizes") else [node.meta["val"]]
        if name not in ("select", "unbind") and any(value.shape[dim] != 1 for value in values):
            return None
        return axis

    def _take(self, node: fx.Node, axis: Axis) -> Any:
        if _name(node) in ("unbind", "split", "split_with_sizes"):
            self._taken[node] = axis
            return (Flow(),) * len(node.meta["val"])
        place = _argument(node, "index" if _name(node) == "select" else "start", 0)
        return self._one(node, node.args[0], place or 0, node)

    def _one(self, node: fx.Node, source: Any, place: int, by: fx.Node) -> Flow:
        (axis,) = self._flows[source].axes
        number = self._batches[axis.name].number
        way = self._number(("sample", source, _name(by)))
        self.pieces[node] = _Piece(axis.name, place % number, way)
        self._way_of[node] = way
        return Flow()

    def _put_together(self, node: fx.Node) -> Flow:
        """cat: all samples in order, as many rows of each."""
        if _name(node) != "cat":
            raise Broken
        given: list[Any] = list(node.args[0])  # type: ignore[arg-type]
        found = [self.pieces.get(part) for part in given]
        batch, dim = next(p.batch for p in found if p), _argument(node, "dim", 0)
        number = self._batches[batch].number
        (dim,) = wrapped(dim, node.meta["val"].dim())
        each = len(given) // number
        groups = [found[i * each : (i + 1) * each] for i in range(number)]
        if len(given) != each * number or not self._all_alike(groups, batch):
            raise Broken
        return Flow((Axis(batch, dim, ONE, Size(node.meta["val"].shape[dim] // number)),))

    def _all_alike(self, groups: list[list[_Piece | None]], batch: str) -> bool:
        """Whether every group holds pieces of the sample in its place, computed as those of the first."""
        return all(
            piece is not None
            and first is not None
            and (piece.batch, piece.place, piece.way) == (batch, i, first.way)
            for i, group in enumerate(groups)
            for piece, first in zip(group, groups[0], strict=True)
        )

    def _put(self, node: fx.Node, piece: _Piece) -> Flow:
        """Sample after sample is written into its own place of one tensor."""
        into: Any = node.args[0]
        (dim,) = wrapped(_argument(node, "dim", 0), node.meta["val"].dim())
        place = _argument(node, "index" if _name(node) == "select_scatter" else "start", 0) or 0
        number = self._batches[piece.batch].number
        one = _name(node) == "select_scatter" or node.args[1].meta["val"].shape[dim] == 1  # type: ignore
        before = self._filled.get(into)
        start = self._flows.get(into)
        if before is None and isinstance(start, Flow) and not start.position:
            own = start.axes in ((), (Axis(piece.batch, dim),)) and into not in self.pieces
            before = _Filled(piece.batch, dim, 0, piece.way) if own else None
        wanted = None if before is None else _Filled(piece.batch, dim, piece.place, piece.way)
        if (
            before != wanted
            or not one
            or place % number != piece.place
            or node.meta["val"].shape[dim] != number
        ):
            raise Broken
        if piece.place == number - 1:
            return Flow((Axis(piece.batch, dim),))
        self._filled[node] = _Filled(piece.batch, dim, piece.place + 1, piece.way)
        return Flow()

    def _returned(self, node: fx.Node) -> None:
        """A list of results, one of each sample."""
        if any(n in self._filled for n in node.all_input_nodes):
            raise Broken
        found: dict[tuple[str, int], set[int]] = {}
        for piece in (self.pieces[n] for n in node.all_input_nodes if n in self.pieces):
            found.setdefault((piece.batch, piece.way), set()).add(piece.place)
        if any(len(places) != self._batches[batch].number for (batch, _), places in found.items()):
            raise Broken

    def _way(self, node: fx.Node) -> int:
        """A number for how a node is computed: equal for nodes that do the same to different samples."""
        if node not in self._way_of:
            how: Hashable = _constant(node) if node.op == "get_attr" else node
            if node.op == "call_function":
                arguments = (node.args, tuple(sorted(node.kwargs.items())))
                how = (str(node.target), self._frozen(arguments))
            self._way_of[node] = self._number(how)
        return self._way_of[node]

    def _number(self, how: Hashable) -> int:
        return self._ways.setdefault(how, len(self._ways))

    def _frozen(self, value: Any) -> Hashable:
        if isinstance(value, fx.Node):
            return "way", self._way(value)
        if isinstance(value, tuple | list):
            return tuple(self._frozen(item) for item in value)
        return repr(value)


def _constant(node: fx.Node) -> Hashable:
    """A tensor made in a loop is another attribute every time round; small ones are told by value."""
    owner, name = node.graph.owning_module, str(node.target)
    value = getattr(owner, name, None) if owner is not None else None
    if not isinstance(value, torch.Tensor) or type(value) is not torch.Tensor or value.numel() > _SMALL:
        return "attribute", name
    return str(value.dtype), tuple(value.shape), str(value.tolist())


def _name(node: fx.Node) -> str:
    return str(node.target).split(".")[1] if isinstance(node.target, torch._ops.OpOverload) else ""


def _argument(node: fx.Node, name: str, default: Any) -> Any:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index(name)
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)


def _is_pure(node: fx.Node) -> bool:
    """Whether a node writes into nothing and draws no random numbers: a sample's would be its place's."""
    tags: Iterable[Any] = getattr(node.target, "tags", ())
    random = torch.Tag.nondeterministic_seeded in tags or _name(node) == "dropout_mask"
    return not random and not (_name(node) and node.target._schema.is_mutable)  # type: ignore[union-attr]
