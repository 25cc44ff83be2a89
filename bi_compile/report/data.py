"""A report as JSON."""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from bi_compile import __version__
from bi_compile.report import CANONICAL, Graph, Report, Verdict
from bi_compile.report.rungs import rungs
from bi_compile.report.trees import tree_of


def to_json(report: Report) -> str:
    return json.dumps(to_dict(report), indent=2)


def to_dict(report: Report) -> dict[str, Any]:
    """Everything in the report as plain dicts, lists, strings and numbers."""
    kinds = Counter(verdict.kind for verdict in report.verdicts)
    return {
        "bi_compile": __version__,
        "name": report.name,
        "promised": report.promised,
        "error": report.error,
        "compilations": report.compilations,
        "counts": dict(kinds),
        "rungs": [asdict(rung) for rung in rungs(report)],
        "refused": [_verdict(verdict) for verdict in report.refused],
        "unknown": [_verdict(verdict) for verdict in report.unknown],
        "isolated": [_verdict(verdict) for verdict in report.isolated],
        "breaks": [{"reason": found.reason, "where": found.where} for found in report.breaks],
        "leaks": [asdict(leak) for leak in report.leaks],
        "questions": [{**asdict(asked), "reason": asked.reason} for asked in report.questions],
        "trees": trees(report),
        "graphs": [_graph(graph) for graph in report.graphs],
    }


def trees(report: Report) -> dict[str, str]:
    """Canonical op -> the tree it is computed by, for the ops of the report."""
    ops = dict.fromkeys(v.op for v in report.verdicts if v.kind == CANONICAL)
    return {op: f"{tree.family}: {tree}" for op in ops if (tree := tree_of(op)) is not None}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    facts = asdict(verdict)
    del facts["kernel"]
    return {**facts, "order": verdict.order}


def _graph(graph: Graph) -> dict[str, Any]:
    return {
        "backward": graph.backward,
        "inputs": [asdict(entry) for entry in graph.inputs],
        "ops": [_verdict(verdict) for verdict in graph.verdicts],
        "outputs": list(graph.outputs),
        "not_promised": graph.not_promised,
    }
