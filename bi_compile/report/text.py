"""A report as text: a summary for people, and the table of all ops."""

from collections import Counter
from collections.abc import Iterator

from bi_compile.report import REFUSED, UNKNOWN, Graph, Report, Verdict
from bi_compile.report.orders import orders
from bi_compile.report.rungs import rungs


def headline(report: Report) -> str:
    """One sentence: does the promise hold?"""
    if report.error:
        return f"not compiled: {report.error.splitlines()[0]}"
    if report.refused:
        return f"refused: no promise for {', '.join(dict.fromkeys(v.op for v in report.refused))}"
    if report.leaks:
        return f"no promise: {report.leaks[0].reason}"
    if not report.graphs:
        return "no promise: no graph was compiled"
    if report.unknown:
        return f"no promise: unknown whether {report.unknown[0].op} keeps samples apart"
    outside = "; if what runs outside graphs keeps samples apart" if report.breaks else ""
    among = report.among and f", among {report.among}"
    return f"every sample gets the same bits whatever shares its batch{among}{outside}"


def summary(report: Report) -> str:
    """What `print(report)` shows."""
    return "\n".join(_summary(report))


def _summary(report: Report) -> Iterator[str]:
    yield f"{report.name or 'report'}: {headline(report)}"
    yield f"{_plural(len(report.graphs), 'graph')}, {_plural(len(report.verdicts), 'op')}"
    counts = Counter((v.kind, v.op) for v in report.verdicts)
    for (kind, op), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        yield f"{count:5d}  {kind:<15}  {op}"
    grouped: dict[tuple[str, str], list[str]] = {}
    for rung in rungs(report):
        grouped.setdefault((rung.holds, rung.why), []).append(f"{rung.letter} {rung.name}")
    for (holds, why), names in grouped.items():
        yield f"{holds:>5}  {', '.join(names)}: {why}"
    for graph in report.graphs:
        for verdict in graph.verdicts:
            if verdict.kind in (*REFUSED, UNKNOWN):
                yield from _problem(
                    f"{verdict.kind}: {verdict.op} ({verdict.node})", verdict.reason, verdict.where
                )
                if verdict.path:
                    yield f"  path {' > '.join(named_path(verdict, graph))}"
    for verdict in report.isolated:
        yield from _problem(f"sample by sample: {verdict.op} ({verdict.node})", verdict.reason, verdict.where)
    for number, graph in enumerate(report.graphs):
        if graph.not_promised:
            yield f"not promised: output {', '.join(graph.not_promised)} of graph {number}"
    # A library's functions are mostly called by one of the user's that is listed itself.
    listed = [found for found in report.breaks if not found.library] or report.breaks
    for found in listed:
        yield from _problem("graph break", found.reason, found.where)
    if inside := len(report.breaks) - len(listed):
        yield f"outside graphs too: {_plural(inside, 'function')} of PyTorch and Python called there"
    for question in report.questions:
        yield from _problem("batch size", question.reason, question.where)
    for leak in report.leaks:
        yield from _problem("no promise", leak.reason, leak.where)
    if report.error:
        yield from report.error.splitlines()


def named_path(verdict: Verdict, graph: Graph) -> list[str]:
    """The path to a verdict's op, with the user's names for inputs."""
    names = {entry.node: entry.name for entry in graph.inputs}
    return [names.get(node, node) for node in verdict.path]


def _problem(what: str, reason: str | None, where: str | None) -> Iterator[str]:
    yield f"{what}: {reason}" if reason else what
    if where:
        yield f"  {where}"


def table(report: Report) -> str:
    """A line for each op: its verdict, node, op, result, the op it was rewritten from, the user's line.

    Below each graph are the order certificates of its kernels on CUDA devices.
    """
    lines = []
    for number, graph in enumerate(report.graphs):
        lines.append(f"graph {number}{', backward' if graph.backward else ''}")
        rows = [("input", i.node, i.name, i.value, "") for i in graph.inputs]
        rows += [(v.kind, v.node, v.op, v.value, _source(v)) for v in graph.verdicts]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)]
            lines.append(f"  {'  '.join(cells)}".rstrip())
        if found := orders(graph):
            lines.append("orders of sums on CUDA devices")
            lines += [f"  {line}" for line in found.splitlines()]
    return "\n".join(lines)


def _source(verdict: Verdict) -> str:
    return "  ".join(part for part in (verdict.origin and f"from {verdict.origin}", verdict.where) if part)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
