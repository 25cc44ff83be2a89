"""Where the nodes of a graph are drawn: layers by depth, and long edges on lanes of their own.

The plane is a grid. A node takes NODE_CELLS cells of its layer's row. A value that is read further down than
in the next layer is carried there by a lane: one cell wide, straight, and no node of the layers it passes is
put on it. So no edge runs through a node.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bi_compile.report import Graph

NODE_CELLS = 9


@dataclass(frozen=True)
class Place:
    """A node: its layer, and the cell of its middle."""

    layer: int
    cell: int


@dataclass(frozen=True)
class Edge:
    """source is read by target; lane: the cell it runs along on its way, None between neighbouring layers."""

    source: str
    target: str
    lane: int | None = None


@dataclass(frozen=True)
class Layout:
    """places: node -> Place; edges in the order of their targets; first and last cell in use; layers."""

    places: dict[str, Place]
    edges: list[Edge]
    first: int
    last: int
    layers: int


def lay_out(graph: Graph) -> Layout:
    """The layout of the ops of a graph and of the inputs that hold samples; parameters are not drawn."""
    reads: dict[str, tuple[str, ...]] = {i.node: () for i in graph.inputs if i.batched}
    for verdict in graph.verdicts:
        reads[verdict.node] = tuple(name for name in verdict.inputs if name in reads)
    layer = _layers(reads)
    rows: dict[int, list[str]] = defaultdict(list)
    for name, depth in layer.items():
        rows[depth].append(name)
    last_read = {name: layer[name] for name in reads}
    for name, sources in reads.items():
        for source in sources:
            last_read[source] = max(last_read[source], layer[name])

    grid = _Grid()
    cells: dict[str, int] = {}
    lanes: dict[str, int] = {}
    for depth in range(len(rows)):
        wanted = {}
        for name in rows[depth]:
            # Below what it reads in the layer above; lanes alone decide where there is nothing above.
            above = [cells[s] for s in reads[name] if layer[s] == depth - 1]
            wanted[name] = _middle(above or [lanes[s] for s in reads[name]])
        for name in sorted(rows[depth], key=lambda name: (not reads[name], wanted[name])):
            cells[name] = grid.put_node(wanted[name], depth)
        for name in rows[depth]:
            if last_read[name] > depth + 1:
                lanes[name] = grid.put_lane(cells[name], depth, until=last_read[name] - 1)
    edges = [
        Edge(source, name, lanes[source] if layer[name] > layer[source] + 1 else None)
        for name, sources in reads.items()
        for source in sources
    ]
    places = {name: Place(layer[name], cells[name]) for name in reads}
    used = [*cells.values(), *lanes.values()] or [0]
    return Layout(places, edges, min(used), max(used), len(rows))


def _layers(reads: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """Row of each node: right above its first reader, so that side branches stand beside what uses them."""
    layer: dict[str, int] = {}
    for name, sources in reads.items():
        layer[name] = max((layer[s] + 1 for s in sources), default=0)
    first_reader: dict[str, int] = {}
    for name, sources in reversed(reads.items()):
        layer[name] = first_reader.get(name, layer[name] + 1) - 1
        for source in sources:
            first_reader[source] = min(first_reader.get(source, layer[name]), layer[name])
    return layer


def _middle(cells: Sequence[int]) -> int:
    return round(sum(cells) / len(cells)) if cells else 0


class _Grid:
    """Which cells are taken, layer by layer from the top."""

    def __init__(self) -> None:
        self._lane_ends: dict[int, int] = {}
        self._row = -1
        self._taken: set[int] = set()

    def put_node(self, wanted: int, layer: int) -> int:
        """The free middle nearest to the one wanted."""
        if layer != self._row:
            self._row, self._taken = layer, set()
        half = NODE_CELLS // 2
        for middle in _outwards(wanted):
            cells = range(middle - half, middle + half + 1)
            if not any(self._busy(cell, layer) for cell in cells):
                # One free cell on each side keeps neighbours apart.
                self._taken.update(range(middle - half - 1, middle + half + 2))
                return middle
        raise AssertionError("an endless row has room")

    def put_lane(self, near: int, layer: int, *, until: int) -> int:
        """A cell beside the node at `near` that is free in all layers below, up to `until`."""
        for cell in _outwards(near):
            if abs(cell - near) > NODE_CELLS // 2 and self._lane_ends.get(cell, -1) <= layer:
                self._lane_ends[cell] = until
                return cell
        raise AssertionError("an endless row has room")

    def _busy(self, cell: int, layer: int) -> bool:
        return cell in self._taken or self._lane_ends.get(cell, -1) >= layer


def _outwards(start: int):
    yield start
    for step in range(1, 1 << 20):
        yield start + step
        yield start - step
