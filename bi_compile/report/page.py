"""A report as one HTML page: nothing is loaded from elsewhere, and it reads without scripts too."""

import json
import os
from dataclasses import replace
from html import escape
from importlib.resources import files

from bi_compile import __version__
from bi_compile.report import (
    CANONICAL,
    ISOLATED,
    LEFT_ALONE,
    MIXES,
    ORDER_FREE,
    UNKNOWN,
    Graph,
    Input,
    Report,
    Verdict,
)
from bi_compile.report.data import trees
from bi_compile.report.drawing import draw
from bi_compile.report.rungs import IF, NO, YES, Rung, rungs
from bi_compile.report.text import headline, named_path

KINDS = {
    CANONICAL: ("canonical", "rewritten to a template with one summation tree"),
    ORDER_FREE: ("free", "its definition fixes the result"),
    ISOLATED: ("isolated", "runs sample by sample"),
    MIXES: ("mixes", "its result for one sample depends on the others"),
    UNKNOWN: ("unknown", "nobody can say how the batch passes through it"),
    LEFT_ALONE: ("alone", "unsupported: nothing is promised"),
}
"""Kind -> its CSS class, and what it means."""


def render(report: Report) -> str:
    """The page."""
    lines = _Lines(report)
    parts = {
        "title": escape(report.name or "report"),
        "headline": escape(headline(report)),
        "state": _state(report),
        "facts": _facts(report),
        "rungs": "".join(_rung(rung) for rung in rungs(report)),
        "problems": _problems(report, lines),
        "legend": _legend(report),
        "choice": _choice(report),
        "graphs": "".join(_graph(number, graph, lines) for number, graph in enumerate(report.graphs)),
        "footer": escape(f"bi_compile {__version__}{lines.below}"),
        "trees": json.dumps(trees(report)).replace("<", "\\u003c"),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
    }
    page = _asset("page.html")
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    return page


def _state(report: Report) -> str:
    if report.promised:
        return "partly" if report.breaks else "good"
    return "partly" if replace(report, questions=[]).promised else "bad"


def _asset(name: str) -> str:
    return (files("bi_compile.report") / "assets" / name).read_text(encoding="utf-8")


class _Lines:
    """Users' lines, with the folder that all files are in told once."""

    def __init__(self, report: Report) -> None:
        everything = (*report.verdicts, *report.breaks, *report.questions, *report.leaks)
        paths = {os.path.dirname(found.where.split(":", 1)[0]) for found in everything if found.where}
        absolute = [path for path in paths if os.path.isabs(path)]
        self._folder = os.path.commonpath(absolute) if absolute else ""
        self.below = f" · files below {self._folder}" if len(self._folder) > 1 else ""

    def show(self, where: str | None) -> str:
        if not where:
            return ""
        place, _, code = where.partition(":  ")
        if len(self._folder) > 1:
            place = place.removeprefix(self._folder + os.sep)
        return f"<span class=place>{escape(place)}</span><code>{escape(code)}</code>"


def _facts(report: Report) -> str:
    graphs = len(report.graphs)
    facts = {"graph" if graphs == 1 else "graphs": graphs, "ops": len(report.verdicts)}
    facts |= {kind: n for kind in KINDS if (n := sum(v.kind == kind for v in report.verdicts))}
    asked = {"graph break": report.breaks, "question": report.questions, "leak": report.leaks}
    for name, found in asked.items():
        if found:
            facts[name if len(found) == 1 else f"{name}s"] = len(found)
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{n}</dd></div>" for name, n in facts.items())


def _rung(rung: Rung) -> str:
    says = {YES: "yes: ", NO: "no: ", IF: "if "}[rung.holds]
    return (
        f'<li class="rung {rung.holds}" title="a sample\'s bits do not depend on {escape(rung.of)}">'
        f"<b>{rung.letter}</b><span><strong>{rung.name}</strong>{says}{escape(rung.why)}</span></li>"
    )


def _problems(report: Report, lines: _Lines) -> str:
    found = []
    for number, graph in enumerate(report.graphs):
        ids = node_ids(graph)
        for verdict in graph.verdicts:
            if verdict.kind in (ISOLATED, MIXES, UNKNOWN, LEFT_ALONE):
                path = (
                    f"<div class=path>{escape(' → '.join(named_path(verdict, graph)))}</div>"
                    if verdict.path
                    else ""
                )
                target = f"{number}-{ids[verdict.node]}"
                found.append(
                    f'<li class="k-{KINDS[verdict.kind][0]}"><a href="#r{target}" data-go="{target}">'
                    f"{escape(verdict.op)}</a> {verdict.kind}{_because(verdict.reason)}{path}"
                    f"{lines.show(verdict.where)}</li>"
                )
        if graph.not_promised:
            names = ", ".join(graph.not_promised)
            found.append(f"<li>output {escape(names)} of graph {number} is not promised</li>")
    notes = [
        *(("graph break", seen) for seen in report.breaks),
        *(("batch size", seen) for seen in report.questions),
        *((seen.kind, seen) for seen in report.leaks),
    ]
    for what, seen in notes:
        found.append(f"<li>{escape(what)}{_because(seen.reason)}{lines.show(seen.where)}</li>")
    if report.error:
        found.append(f"<li><pre>{escape(report.error)}</pre></li>")
    if not found:
        return ""
    return f"<section class=problems><h2>To look at</h2><ul>{''.join(found)}</ul></section>"


def _because(reason: str | None) -> str:
    return f": {escape(reason)}" if reason else ""


def _legend(report: Report) -> str:
    present = {verdict.kind for verdict in report.verdicts}
    return "".join(
        f'<button type=button class="k-{css}" data-kind="k-{css}" aria-pressed=false '
        f'title="{escape(meaning)}">{escape(kind)}</button>'
        for kind, (css, meaning) in KINDS.items()
        if kind in present
    )


def _choice(report: Report) -> str:
    if len(report.graphs) < 2:
        return ""
    names = [
        f"graph {number}{', backward' if graph.backward else ''}: {len(graph.verdicts)} ops"
        for number, graph in enumerate(report.graphs)
    ]
    options = "".join(f"<option value={number}>{name}</option>" for number, name in enumerate(names))
    return f'<select id=choice aria-label="graph">{options}</select>'


def _graph(number: int, graph: Graph, lines: _Lines) -> str:
    ids = node_ids(graph)
    promised = set(graph.outputs) - set(graph.not_promised)
    rows = {entry.node: _input_row(f"r{number}-{ids[entry.node]}", entry) for entry in graph.inputs}
    for verdict in graph.verdicts:
        rows[verdict.node] = _row(f"r{number}-{ids[verdict.node]}", verdict, lines, graph.outputs, promised)
    drawing = draw(graph, ids, number, {kind: css for kind, (css, _) in KINDS.items()})
    return (
        f'<section class=graph id="g{number}"><div class=canvas>{drawing}'
        "<canvas class=overview aria-hidden=true></canvas></div><div class=side>"
        "<div class=details aria-live=polite>Choose a node in the drawing or in the table.</div>"
        "<div class=rows><table><colgroup><col><col><col><col></colgroup><thead><tr><th>node, op</th>"
        "<th>verdict</th><th>result</th><th>your line</th></tr></thead>"
        f"<tbody>{''.join(rows[name] for name in ids)}</tbody></table></div></div></section>"
    )


def node_ids(graph: Graph) -> dict[str, int]:
    """Node -> its number on the page: what holds samples, the ops, and parameters at the end."""
    names = [i.node for i in graph.inputs if i.batched]
    names += [v.node for v in graph.verdicts]
    names += [i.node for i in graph.inputs if not i.batched]
    return {name: number for number, name in enumerate(names)}


def _input_row(name: str, entry: Input) -> str:
    return (
        f'<tr id="{name}" class="k-{"input" if entry.batched else "parameter"}">'
        f"<td><b>{escape(entry.name)}</b><i>{escape(entry.node)}</i></td>"
        f"<td><span>{'input' if entry.batched else 'parameter'}</span></td>"
        f"<td>{escape(entry.value)}</td><td></td></tr>"
    )


def _row(name: str, verdict: Verdict, lines: _Lines, outputs: tuple[str, ...], promised: set[str]) -> str:
    origin = f" from {verdict.origin}" if verdict.origin else ""
    told = "".join(f"<i>{escape(text)}</i>" for text in (verdict.reason, verdict.order) if text)
    output = ""
    if verdict.node in outputs:
        output = f"<i>output{'' if verdict.node in promised else ', not promised'}</i>"
    return (
        f'<tr id="{name}" class="k-{KINDS[verdict.kind][0]}"><td><b>{escape(verdict.node)}</b>'
        f"<i>{escape(verdict.op + origin)}</i></td><td><span>{verdict.kind}</span>{told}</td>"
        f"<td>{escape(verdict.value)}{output}</td><td>{lines.show(verdict.where)}</td></tr>"
    )
