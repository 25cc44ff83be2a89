"""The drawing: layers follow the flow, and no edge runs through a node."""

import itertools

from bi_compile.report.layout import NODE_CELLS, lay_out
from tests.report.examples import bad, good, large


def graphs():
    return [*good().graphs, *bad().graphs, *large(20).graphs]


def test_every_op_and_every_input_with_samples_has_a_place():
    for graph in graphs():
        drawn = {v.node for v in graph.verdicts} | {i.node for i in graph.inputs if i.batched}
        assert set(lay_out(graph).places) == drawn


def test_edges_run_downwards_and_none_is_missing():
    for graph in graphs():
        layout = lay_out(graph)
        for edge in layout.edges:
            source, target = layout.places[edge.source], layout.places[edge.target]
            assert source.layer < target.layer
            assert (edge.lane is None) == (target.layer == source.layer + 1)
        pairs = [(name, v.node) for v in graph.verdicts for name in v.inputs if name in layout.places]
        assert sorted(pairs) == sorted((e.source, e.target) for e in layout.edges)


def test_nodes_do_not_overlap_and_lanes_pass_beside_them():
    for graph in graphs():
        layout = lay_out(graph)
        half = NODE_CELLS // 2
        by_layer: dict[int, list[int]] = {}
        for place in layout.places.values():
            by_layer.setdefault(place.layer, []).append(place.cell)
        for cells in by_layer.values():
            assert all(b - a >= NODE_CELLS for a, b in itertools.pairwise(sorted(cells)))
        for edge in layout.edges:
            if edge.lane is None:
                continue
            layers = range(layout.places[edge.source].layer + 1, layout.places[edge.target].layer)
            for layer in layers:
                assert all(abs(edge.lane - cell) > half for cell in by_layer.get(layer, []))


def test_a_deep_graph_stays_narrow():
    layout = lay_out(large().graphs[0])
    assert layout.layers > 500
    assert layout.last - layout.first < 6 * NODE_CELLS


def test_the_same_graph_has_the_same_layout():
    assert lay_out(large(5).graphs[0]) == lay_out(large(5).graphs[0])
