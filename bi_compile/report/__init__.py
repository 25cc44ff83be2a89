"""What was done to a model: a verdict for every op of every graph, and what the host did by itself.

This file holds the facts; the other files of the package show them as text, JSON and one HTML page.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CANONICAL = "canonical"
ORDER_FREE = "order-free"
ISOLATED = "isolated"
MIXES = "mixes the batch"
UNKNOWN = "unknown"
LEFT_ALONE = "left alone"

REFUSED = frozenset((MIXES, LEFT_ALONE))
"""Kinds that stop the compilation under on_unsupported="error"."""


@dataclass(frozen=True)
class Kernel:
    """What decides which order certificate holds for an op on a CUDA device.

    op, family: such as "mm" of the templates "contraction". dtype: such as "bfloat16".
    length: of the sums, None where it is not known before the call or does not matter.
    form: which dim groups cut, "M", "N" or "K", or how a convolution is computed; else "".
    capability: of the device, 90 for Hopper.
    """

    op: str
    family: str
    dtype: str
    length: int | None
    form: str
    capability: int


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
    origin: the op of the model it was rewritten from, such as "aten.gelu.default", where that is another.
    kernel: what runs it on a CUDA device, if that sums anything; `order` is then its certificate.
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
    origin: str = ""
    kernel: Kernel | None = None

    @property
    def order(self) -> str:
        """The order certificate (docs/gpu-order.md), or "". Its kernel is compiled when first asked for."""
        if self.kernel is None:
            return ""
        from bi_compile.report.orders import order

        return order(self.kernel)


@dataclass(frozen=True)
class Break:
    """A place where Dynamo ended a graph: until the next one, ops run one by one by their canonical form.

    Through these the batch is not followed.

    reason: in Dynamo's words, one line. where: the user's line, if known.
    library: whether it is a function of PyTorch or Python itself, which Dynamo skips by its file.
    """

    reason: str
    where: str | None = None
    library: bool = False


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
class Question:
    """What the model's Python asks of the size of the batch: the answer decides what is computed.

    expression: such as "B > 4". relation: whether that is true or false, or else a number, which the graph
    then has fixed. where: the user's line, if known.
    """

    expression: str
    relation: bool = True
    where: str | None = None

    @property
    def reason(self) -> str:
        if self.relation:
            return f"the model's Python asks whether {self.expression}"
        return f"the model's Python takes {self.expression} as a plain number"


def among(questions: Sequence[Question]) -> str:
    """The batches that have the same answers to some questions; "" for all, where nothing is asked."""
    if not all(question.relation for question in questions):
        return "batches of one size"
    *others, last = dict.fromkeys(question.expression for question in questions) or ("",)
    relations = f"{', '.join(others)} and {last}" if others else last
    return f"batches that answer {relations} alike" if relations else ""


@dataclass(frozen=True)
class Input:
    """A tensor that enters a graph.

    node: its name in the graph. name: what the user calls it, such as "self.fc.weight", or the same as node.
    value: such as "f32[B, 64]". batched: whether it holds data of single samples; parameters do not.
    """

    node: str
    name: str
    value: str = ""
    batched: bool = True


@dataclass(frozen=True)
class Graph:
    """One final graph, forward or backward.

    verdicts: of its ops, in order; inputs: the tensors that enter it; outputs: the nodes it returns.
    Every name in a verdict's `inputs` is another verdict's or an input's node.
    """

    verdicts: list[Verdict]
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()
    backward: bool = False

    @property
    def not_promised(self) -> list[str]:
        """The outputs that a refused or unknown op reaches: their bits may change with the batch."""
        tainted: set[str] = set()
        for verdict in self.verdicts:
            if verdict.kind in (*REFUSED, UNKNOWN) or not tainted.isdisjoint(verdict.inputs):
                tainted.add(verdict.node)
        return [name for name in self.outputs if name in tainted]


@dataclass
class Report:
    """The graphs compiled while the report was open.

    name: of the model. graphs: each final graph, forward and backward.
    breaks: where graphs ended before the function did. leaks: what else the host computed by itself.
    questions: what the model's Python asked of the size of the batch.
    error: the message of an error that stopped the compilation, if one did.
    """

    name: str = ""
    graphs: list[Graph] = field(default_factory=list)
    compilations: int = 0
    breaks: list[Break] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    error: str | None = None

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for graph in self.graphs for verdict in graph.verdicts]

    @property
    def left_alone(self) -> list[Verdict]:
        """The ops that were compiled as stock PyTorch has them."""
        return [verdict for verdict in self.verdicts if verdict.kind == LEFT_ALONE]

    @property
    def refused(self) -> list[Verdict]:
        """The ops for which nothing is promised: they stop a compilation unless the options say not to."""
        return [verdict for verdict in self.verdicts if verdict.kind in REFUSED]

    @property
    def unknown(self) -> list[Verdict]:
        """The ops with one order of arithmetic of which nobody can say whether they keep samples apart."""
        return [verdict for verdict in self.verdicts if verdict.kind == UNKNOWN]

    @property
    def isolated(self) -> list[Verdict]:
        """The ops that run sample by sample: right, and slow."""
        return [verdict for verdict in self.verdicts if verdict.kind == ISOLATED]

    @property
    def canonical(self) -> Counter[str]:
        """How often each template's op stands in the graphs."""
        return Counter(v.op for v in self.verdicts if v.kind == CANONICAL)

    @property
    def among(self) -> str:
        """The batches among which the model asks nothing that tells them apart; "" for all batches."""
        return among(self.questions)

    @property
    def promised(self) -> bool:
        """Whether every sample gets the same bits whatever shares its batch, as far as the graphs go."""
        return bool(self.graphs) and not (
            self.refused or self.unknown or self.leaks or self.questions or self.error
        )

    def __str__(self) -> str:
        from bi_compile.report.text import summary

        return summary(self)

    def table(self) -> str:
        """Every op of every graph, a line each."""
        from bi_compile.report.text import table

        return table(self)

    def json(self) -> str:
        """Everything in the report as JSON; docs/reading-a-report.md lists the keys."""
        from bi_compile.report.data import to_json

        return to_json(self)

    def html(self, path: str | Path) -> Path:
        """Write one HTML page that needs nothing else, no network either, and return its path."""
        from bi_compile.report.page import render

        target = Path(path)
        target.write_text(render(self), encoding="utf-8")
        return target


_open: list[Report] = []
_lock = threading.Lock()


@contextmanager
def collect(name: str = "") -> Iterator[Report]:
    """The report of every compilation by this backend inside the `with` block."""
    report = Report(name)
    with _lock:
        _open.append(report)
    try:
        yield report
    finally:
        with _lock:
            _open.remove(report)


def is_open() -> bool:
    """Whether anybody waits for verdicts, which a graph from Inductor's cache does not bring."""
    return bool(_open)


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


def record_question(found: Question) -> None:
    """The model's Python asked for the size of the batch; the same question is listed once."""
    for report in _open:
        if found not in report.questions:
            report.questions.append(found)
