"""A graph as readable Python, with the batch in a comment behind every line."""

import re
from collections.abc import Mapping
from typing import Any

from torch import fx

from bi_compile.report.graphs import original, shown
from bi_compile.user_lines import line_of

_ASSIGNMENT = re.compile(r"^\s+(\w+)(?:\s*:[^=]+)? = ")


def annotated(graph: fx.Graph, batch: Mapping[str, str]) -> str:
    """Python code of `graph`.

    Behind each line: the result with the batch in it, and the op it was rewritten from. Above the first line
    that comes from a user's line: that line. On top: the inputs. batch: see `shown`.
    """
    nodes = {node.name: node for node in graph.nodes}
    lines: list[str] = []
    where = None
    for line in graph.python_code("self", verbose=False).src.splitlines():
        found = _ASSIGNMENT.match(line)
        node = nodes.get(found[1]) if found else None
        code = re.sub(r";?\s+(?:\w+ = )+None\s*(?:#.*)?$", "", line)
        if node is None:
            lines.append(code)
            if line.startswith("def "):
                lines += [f"    # {name}: {value}" for name, value in _inputs(graph, batch).items()]
            continue
        if node.op == "placeholder":
            lines.append(code)
            continue
        if (here := line_of(node)) and here != where:
            lines += ["", f"    # {here}"]
            where = here
        value = shown(_value(node), batch)
        origin = original(node)
        comment = "  ".join(part for part in (value, origin and f"from {origin}") if part)
        lines.append(f"{code}  # {comment}" if comment else code)
    return "\n".join(lines).strip() + "\n"


def _inputs(graph: fx.Graph, batch: Mapping[str, str]) -> dict[str, str]:
    return {node.name: shown(_value(node), batch) for node in graph.find_nodes(op="placeholder")}


def _value(node: fx.Node) -> Any:
    return node.meta.get("val", node.meta.get("example_value"))
