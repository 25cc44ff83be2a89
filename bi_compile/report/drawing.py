"""The graph as SVG: nodes coloured by verdict, thick edges where the batch flows."""

from collections.abc import Mapping
from html import escape

from bi_compile.report import Graph
from bi_compile.report.layout import NODE_CELLS, Edge, Layout, lay_out

_CELL, _ROW, _HEIGHT, _MARGIN = 20, 64, 36, 24
_WIDTH = NODE_CELLS * _CELL - 4
_BEND = 14


def draw(graph: Graph, ids: Mapping[str, int], number: int, css: Mapping[str, str]) -> str:
    """An <svg>; node `name` has the id n<number>-<ids[name]>. css: kind of verdict -> its class."""
    layout = lay_out(graph)
    width = (layout.last - layout.first + NODE_CELLS) * _CELL + 2 * _MARGIN
    height = layout.layers * _ROW + 2 * _MARGIN
    batched = {v.node: v.batched for v in graph.verdicts} | {i.node: i.batched for i in graph.inputs}
    edges = sorted(layout.edges, key=lambda edge: batched[edge.source])
    drawn = [
        f'<path class="{"b" if batched[e.source] else "p"}" data-e="{ids[e.source]} {ids[e.target]}" '
        f'd="{_curve(e, layout)}"/>'
        for e in edges
    ]
    nodes = [
        _node(layout, i.node, f"n{number}-{ids[i.node]}", "input", i.name, i.value)
        for i in graph.inputs
        if i.node in layout.places
    ]
    for v in graph.verdicts:
        kind = f"{css[v.kind]}{' output' if v.node in graph.outputs else ''}{'' if v.batched else ' fixed'}"
        nodes.append(_node(layout, v.node, f"n{number}-{ids[v.node]}", kind, short(v.op), v.value))
    return (
        f'<svg tabindex=0 role=img aria-label="graph {number}: {len(nodes)} nodes. Arrow keys walk along it, '
        f'plus and minus zoom, 0 shows all." data-width="{width}" data-height="{height}" '
        f'viewBox="0 0 {width} {height}" preserveAspectRatio="xMidYMin meet"><g>'
        f"<g class=edges>{''.join(drawn)}</g>{''.join(nodes)}</g></svg>"
    )


def short(op: str) -> str:
    """ "aten.add.Tensor" -> "add"."""
    parts = op.split(".")
    return parts[1] if len(parts) > 1 else op


def _x(cell: int, layout: Layout) -> float:
    return (cell - layout.first + NODE_CELLS / 2) * _CELL + _MARGIN


def _top(layer: int) -> int:
    return layer * _ROW + _MARGIN


def _node(layout: Layout, name: str, id: str, css: str, label: str, value: str) -> str:
    place = layout.places[name]
    x, y = _x(place.cell, layout) - _WIDTH / 2, _top(place.layer)
    return (
        f'<g id="{id}" class="n k-{css}" transform="translate({x:g} {y})"><rect width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="6"/><text x="10" y="15">{escape(_fit(label, 22))}</text>'
        f'<text x="10" y="29" class=v>{escape(_fit(value, 24))}</text></g>'
    )


def _fit(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _curve(edge: Edge, layout: Layout) -> str:
    source, target = layout.places[edge.source], layout.places[edge.target]
    x, y = _x(source.cell, layout), _top(source.layer) + _HEIGHT
    end_x, end_y = _x(target.cell, layout), _top(target.layer)
    if edge.lane is None:
        return f"M{x:g} {y}C{x:g} {y + _BEND} {end_x:g} {end_y - _BEND} {end_x:g} {end_y}"
    lane, enter, leave = _x(edge.lane, layout), _top(source.layer + 1), _top(target.layer - 1) + _HEIGHT
    return (
        f"M{x:g} {y}C{x:g} {y + _BEND} {lane:g} {enter - _BEND} {lane:g} {enter}V{leave}"
        f"C{lane:g} {leave + _BEND} {end_x:g} {end_y - _BEND} {end_x:g} {end_y}"
    )
