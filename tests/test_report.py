"""What a report holds: verdicts by graph, breaks and leaks, each listed once."""

from bi_compile.report import (
    CANONICAL,
    LEFT_ALONE,
    Break,
    Graph,
    Leak,
    Verdict,
    collect,
    record_break,
    record_compilation,
    record_graph,
    record_leak,
)


def test_a_report_holds_what_happened_while_it_was_open():
    with collect() as outer:
        record_compilation()
        with collect() as inner:
            record_graph(Graph([Verdict("bi_compile.mm", CANONICAL), Verdict("aten.sort", LEFT_ALONE)]))
            for _ in range(2):
                record_break(Break("print", "model.py:3"))
                record_leak(Leak("skipped frame", "nn.LSTM runs as stock PyTorch"))
    record_break(Break("later"))
    assert inner.compilations == 0
    assert outer.compilations == 1
    for report in (outer, inner):
        assert [v.op for v in report.verdicts] == ["bi_compile.mm", "aten.sort"]
        assert report.breaks == [Break("print", "model.py:3")]
        assert len(report.leaks) == 1
