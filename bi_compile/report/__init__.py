"""What was done to a model: a verdict for every op of every graph."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

CANONICAL = "canonical"
ORDER_FREE = "order-free"
ISOLATED = "isolated"
MIXES = "mixes the batch"
UNKNOWN = "unknown"
LEFT_ALONE = "left alone"


@dataclass(frozen=True)
class Verdict:
    """One op of a final graph.

    op: its name, such as "bi_compile.mm" or "aten.add.Tensor".
    kind: CANONICAL (a template with one summation tree), ORDER_FREE (its definition fixes the result),
        ISOLATED (run sample by sample), MIXES (its result for one sample depends on the others), UNKNOWN
        (nobody can say how the batch passes through it) or LEFT_ALONE (unsupported, kept as stock PyTorch
        has it because the options said so).
    where: the user's line, if known.
    node: its name in the graph, such as "mul_3"; inputs: the names of the nodes it reads.
    value: its result with the batch written as B, such as "f32[B, 12, 64]"; a merged dim reads "B*12".
    batched: whether the result holds data of single samples. False for what only parameters determine.
    reason: why it mixes, is unknown or was left alone; None for the rest.
    path: names of nodes from an input of the graph to this one, for MIXES and UNKNOWN.
    """

    op: str
    kind: str
    where: str | None = None
    node: str = ""
    inputs: tuple[str, ...] = ()
    value: str = ""
    batched: bool = True
    reason: str | None = None
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Break:
    """A place where Dynamo ended a graph: until the next one, stock PyTorch runs.

    reason: in Dynamo's words, one line. where: the user's line, if known.
    """

    reason: str
    where: str | None = None


@dataclass(frozen=True)
class Leak:
    """A way by which the host computes something without this backend having a say in it.

    kind: such as "recompile limit", "skipped frame", "suppressed error" or "disabled pass".
    reason: what happened, one line that stands alone. where: the user's line or function, if known.
    """

    kind: str
    reason: str
    where: str | None = None


@dataclass(frozen=True)
class Graph:
    """One final graph, forward or backward.

    verdicts: of its ops, in order. inputs: name -> value of what enters it, such as "f32[B, 64]", and
    outputs: the names of the nodes it returns, both in order.
    """

    verdicts: list[Verdict]
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


@dataclass
class Report:
    """The graphs compiled while the report was open.

    graphs: each final graph, forward and backward. A graph that came from Inductor's cache was verified
        when it was stored and is not listed again; `cached` counts those.
    breaks: where graphs ended before the function did. leaks: what else the host computed by itself.
    """

    graphs: list[Graph] = field(default_factory=list)
    compilations: int = 0
    breaks: list[Break] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for graph in self.graphs for verdict in graph.verdicts]

    @property
    def left_alone(self) -> list[Verdict]:
        """The ops for which nothing is promised."""
        return [verdict for verdict in self.verdicts if verdict.kind == LEFT_ALONE]

    @property
    def canonical(self) -> Counter[str]:
        """How often each template's op stands in the graphs."""
        return Counter(v.op for v in self.verdicts if v.kind == CANONICAL)

    @property
    def cached(self) -> int:
        return max(0, self.compilations - len(self.graphs))

    def __str__(self) -> str:
        counts = Counter((v.kind, v.op) for v in self.verdicts)
        lines = [f"{self.compilations} compilations, {len(self.graphs)} graphs, {self.cached} from cache"]
        for (kind, op), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
            lines.append(f"{count:5d}  {kind:<11}  {op}")
        for verdict in self.left_alone:
            lines.append(f"no promise: {verdict.op}  {verdict.where or ''}".rstrip())
        return "\n".join(lines)


_open: list[Report] = []
_lock = threading.Lock()


@contextmanager
def collect() -> Iterator[Report]:
    """The report of every compilation by this backend inside the `with` block."""
    report = Report()
    with _lock:
        _open.append(report)
    try:
        yield report
    finally:
        with _lock:
            _open.remove(report)


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Report:
    """Compile `fn` (a function or module) anew for these inputs, run it once and report on every op.

    Raises what compiling raises; pass a model compiled nowhere else, since Dynamo forgets earlier results.
    """
    import torch

    from bi_compile import inductor
    from bi_compile.backend import batch_invariant

    torch.compiler.reset()
    with collect() as report, inductor.caches_off():
        torch.compile(fn, backend=batch_invariant)(*args, **kwargs)
    return report


def record_compilation() -> None:
    """A compilation starts."""
    for report in _open:
        report.compilations += 1


def record_graph(graph: Graph) -> None:
    """A final graph has been verified."""
    for report in _open:
        report.graphs.append(graph)


def record_break(found: Break) -> None:
    """A graph ended before the function did; the same one is listed once."""
    for report in _open:
        if found not in report.breaks:
            report.breaks.append(found)


def record_leak(found: Leak) -> None:
    """The host computed something by itself; the same one is listed once."""
    for report in _open:
        if found not in report.leaks:
            report.leaks.append(found)
