"""The batch's size in Dynamo: a symbol, and what a model's Python asks of it, as in `if x.shape[0] > 4`.

Dynamo answers for the sizes at hand, traces on, and gives other answers other graphs. Who asked is told by
the place: Dynamo in the interpreter's stead, or whatever takes a plain number. Ops ask for more, such as
whether a tensor is contiguous. Beside `dynamo`, a file that names Dynamo's privates.
"""

import functools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from traceback import FrameSummary
from types import FrameType
from typing import Any

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanFunction
from torch import fx

from bi_compile.batch import batch_dims, marked
from bi_compile.inputs import UserInput, real_inputs, user_inputs
from bi_compile.jumps import guards_an_error
from bi_compile.user_lines import TORCH, frames_of


def make_batch_dynamic(module: fx.GraphModule) -> None:
    """Ask Dynamo to trace again with the batch dims of every real input dynamic, unless they are already.

    Without this the first batch size gets a graph of its own. It changes how many graphs there are, never a
    bit. Nothing is asked where the user said dynamic=False.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TensorifyScalarRestartAnalysis, UnspecializeRestartAnalysis

    class TraceAgain(TensorifyScalarRestartAnalysis, UnspecializeRestartAnalysis):
        """The first base passes through the call of a backend, the second forgets where graphs broke."""

    if config.assume_static_by_default and not config.automatic_dynamic_shapes:
        return
    if sum(_mark(tensor, seen) for tensor, seen in real_inputs(module.graph)):  # all of them, not any
        raise TraceAgain(restart_reason="bi_compile: one graph for all batch sizes")


def trace_batch_dynamic(inputs: Iterable[Any]) -> None:
    """Let Dynamo see the batch dims of these inputs dynamic when it first traces, as `make_batch_dynamic`."""
    for value in inputs:
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter) and value.dim():
            _mark(value, value)


def _mark(tensor: torch.Tensor, seen: torch.Tensor) -> bool:
    """Whether there was something to mark: a tensor that Dynamo sees with static batch dims."""
    from torch._dynamo import maybe_mark_dynamic

    static = _static_batch(tensor, seen)
    if static:
        tensor._bi_compile_asked = True  # type: ignore[attr-defined]
    for dim in static:
        maybe_mark_dynamic(tensor, dim)
    return bool(static)


def _static_batch(tensor: torch.Tensor, seen: torch.Tensor) -> list[int]:
    if getattr(tensor, "_bi_compile_asked", False):
        return []
    dims = marked(tensor)
    # Dynamo gives sizes 0 and 1 a graph of their own whatever one asks.
    return [d for d in ((0,) if dims is None else dims) if isinstance(n := seen.shape[d], int) and n > 1]


@dataclass(frozen=True)
class Size:
    """A dim of an input, or an input that is a number: its symbols, before the host may find it constant."""

    symbols: frozenset[Any]
    hint: int | None

    @classmethod
    def of(cls, size: Any) -> "Size":
        if isinstance(size, int):
            return cls(frozenset(), size)
        return cls(frozenset(_free_symbols(_said(size.node))), size.node.hint)


@dataclass(frozen=True)
class Known:
    """An input of a graph and its sizes. number: whether it is one itself, which is then its only size."""

    entry: UserInput
    sizes: tuple[Size, ...]
    number: bool


@dataclass(frozen=True)
class Asked:
    """A question put to a symbolic size.

    expression: a relation, or the number that was taken. stack: of the user's code. inputs: of the graph so
    far. trace: tells one run of Dynamo over a frame from the next. rounds: of the loop it is for, if any.
    """

    expression: Any
    stack: Sequence[FrameSummary]
    inputs: tuple[Known, ...]
    trace: Any
    rounds: int | None = None


def watch_sizes(tracing: Callable[[], bool], found: Callable[[Asked], None]) -> None:
    """While `tracing()`, call `found` for every question whose answer may bear upon what is computed."""
    from torch.fx.experimental.sym_node import SymNode

    def watched(stock: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(stock)
        def guard(node: Any, *args: Any) -> Any:
            if tracing() and (asked := _asked(node, sys._getframe(1))) is not None:
                found(asked)
            return stock(node, *args)

        return guard

    for name in ("guard_bool", "guard_int", "guard_float"):
        setattr(SymNode, name, watched(getattr(SymNode, name)))


def current_trace() -> Any:
    """Of the frame that Dynamo is at."""
    from torch._guards import TracingContext

    return TracingContext.try_get()


def inputs_of(graph: fx.Graph) -> tuple[Known, ...]:
    """The inputs of a graph of Dynamo, whole or begun."""
    found = []
    for node, entry in zip(graph.find_nodes(op="placeholder"), user_inputs(graph), strict=True):
        value = node.meta.get("example_value")
        number = isinstance(value, torch.SymInt)
        sizes = value.shape if isinstance(value, torch.Tensor) else (value,) if number else ()
        found.append(Known(entry, tuple(map(Size.of, sizes)), number))
    return tuple(found)


def questions_in(graph: fx.Graph) -> Iterator[Asked]:
    """The questions that are nodes of a graph of Dynamo, and whose answers ops take: `x * (x.shape[0] > 4)`.

    An answer in a check has no result, and in a number that is a symbol itself the batch is still to be seen.
    A number of samples is one that a loop over them, or an op, found to be the one at hand.
    """
    for node in graph.nodes:
        value = node.meta.get("example_value")
        if not isinstance(value, torch.SymBool) and not _was_symbolic(value):
            continue
        for user in node.users:
            result = user.meta.get("example_value")
            if result is not None and not _is_symbolic(result) and not _was_symbolic(result):
                yield Asked(_said(value.node), frames_of(user), (), current_trace())


def loops_over_samples(graph: fx.Graph, rounds: int) -> bool:
    """Whether a graph of Dynamo takes so many samples out one by one: there the batch is followed."""
    taken = set()
    for node in graph.nodes:
        if node.target in (operator.getitem, "select") and len(node.args) > 1:
            place = node.args[-1][0] if isinstance(node.args[-1], tuple) and node.args[-1] else node.args[-1]
            place = place.start if isinstance(place, slice) else place
            if isinstance(place, int):
                taken.add(place)
    return taken.issuperset(range(rounds))


def _is_symbolic(value: Any) -> bool:
    symbolic = isinstance(value, torch.SymBool | torch.SymInt | torch.SymFloat)
    return symbolic and bool(_free_symbols(value.node.expr))


def _was_symbolic(value: Any) -> bool:
    number = isinstance(value, torch.SymInt | torch.SymFloat)
    return number and not _is_symbolic(value) and bool(_free_symbols(value.node._expr))


_INTERPRETER = tuple(str(TORCH / "_dynamo" / part) for part in ("variables", "symbolic_convert.py"))
_SYMBOLS = (__file__, *(str(TORCH / part) for part in ("__init__.py", "fx/experimental", "utils/_stats.py")))
_OVER_SAMPLES = {"unpack_var_sequence", "unbind", "split", "chunk", "tensor_split"}
"""What makes a tuple of samples: the batch is followed through all of them."""

_NOTED = {"specialize"}
"""Dynamo notes sizes anew when a tensor was written to."""

_INTO_AS_MANY = {"chunk", "tensor_split"}
"""Of these, what is told how many parts to make, of any dim."""


def _asked(node: Any, asking: FrameType | None) -> Asked | None:
    expression = _said(node)
    if not _free_symbols(expression):
        return None
    while asking is not None and asking.f_code.co_filename.startswith(_SYMBOLS):
        asking = asking.f_back
    relation = _is_relation(expression)
    may_be_an_op = relation or not _free_symbols(node.expr)
    if asking is None or (may_be_an_op and not asking.f_code.co_filename.startswith(_INTERPRETER)):
        return None  # ops ask whether their tensors are contiguous, and more that changes no result
    translator, doing = _translator(asking, expression)
    if translator is None or not doing.isdisjoint(_OVER_SAMPLES | _NOTED):
        return None
    if relation and guards_an_error(translator.current_instruction, translator.instructions):
        return None
    from torch._guards import TracingContext

    inputs = inputs_of(translator.output.root_tracer.graph)
    rounds = node.hint if "call_range" in doing else None
    return Asked(expression, TracingContext.extract_stack(), inputs, current_trace(), rounds)


def _said(node: Any) -> Any:
    """What a size was before a loop over the samples, or an op, found it to be one number."""
    return node.expr if _free_symbols(node.expr) else node._expr


def _free_symbols(expression: Any) -> Any:
    return getattr(expression, "free_symbols", None) or frozenset()


def _translator(frame: FrameType | None, asked: Any) -> tuple[Any, set[str]]:
    """The translator in whose step a frame runs, and what it does there: functions, and a node tried out.

    asked: the number or relation. Cutting a dim into as many parts as another dim has does not count.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslatorBase

    doing = set()
    while frame is not None:
        if isinstance(own := frame.f_locals.get("self"), InstructionTranslatorBase):
            return own, doing
        doing.add(frame.f_code.co_name)
        if frame.f_code.co_name == "run_node":
            target = getattr(node := frame.f_locals.get("node"), "target", "")
            name = str(getattr(target, "__name__", target))
            if name not in _INTO_AS_MANY or _parts_one_by_one(node, asked):
                doing.add(name)
        frame = frame.f_back
    return None, doing


def _parts_one_by_one(node: Any, asked: Any) -> bool:
    """Whether chunk or tensor_split makes as many parts of a dim as it is long."""
    dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    size = node.args[0].meta["example_value"].shape[dim]
    return isinstance(size, torch.SymInt) and size.node.expr == asked


def about_the_batch(
    questions: Iterable[Asked], inputs: Sequence[Known] = ()
) -> Iterator[tuple[str, bool, Asked]]:
    """The questions whose answer hangs on the size of the batch: with it as B, and whether it is a relation.

    inputs: further ones of the same graph, which began to be used after the questions.
    """
    questions = list(questions)
    batch = _batch_symbols([*(known for asked in questions for known in asked.inputs), *inputs])
    for asked in questions:
        expression = asked.expression.subs(batch)
        if any(_depends(part, set(batch.values())) for part in _parts(expression)):
            yield _shown(expression), _is_relation(expression), asked


def _batch_symbols(inputs: Sequence[Known]) -> dict[Any, sympy.Symbol]:
    """The host's symbols for sizes of batches -> one of ours for each batch."""
    tensors = {id(known.entry.tensor): known.entry.tensor for known in inputs}
    dims = dict(zip(tensors, batch_dims(list(tensors.values())), strict=True))
    found: dict[Any, sympy.Symbol] = {}
    others: set[Any] = set()
    extents: dict[int | None, sympy.Symbol] = {}
    for known in inputs:
        own = dims[id(known.entry.tensor)]
        for dim, size in enumerate(known.sizes):
            if dim in own:
                name = f"B{own.index(dim) + 1}" if own.index(dim) else "B"
                batch = sympy.Symbol(name, positive=True, integer=True)
                found |= dict.fromkeys(size.symbols, batch)
                extents.setdefault(size.hint, batch)
            elif not known.number:
                others |= size.symbols
    # A number that a graph after a break gets beside the batch, as in the analysis.
    for number in (known.sizes[0] for known in inputs if known.number):
        if number.hint in extents and number.hint not in (None, 1):
            found |= dict.fromkeys(number.symbols - others - found.keys(), extents[number.hint])
    return {symbol: batch for symbol, batch in found.items() if symbol not in others}


def _is_relation(expression: Any) -> bool:
    return isinstance(expression, Relational | BooleanFunction)  # a symbol is a Boolean of sympy's, too


def _parts(expression: Any) -> Iterable[Any]:
    relations = expression.atoms(Relational)
    return relations if _is_relation(expression) else (expression,)


def _depends(part: Any, batches: set[sympy.Symbol]) -> bool:
    """Whether a number, or the truth of a relation, hangs on the size of a batch."""
    if not isinstance(part, Relational):
        return not batches.isdisjoint(part.free_symbols)
    difference: Any = sympy.factor(part.lhs - part.rhs)  # type: ignore[operator]
    factors = sympy.Mul.make_args(difference)
    return any(not batches.isdisjoint(f.free_symbols) for f in factors if f.as_base_exp()[0] not in batches)


def _shown(expression: Any) -> str:
    if isinstance(expression, Relational):
        return f"{expression.lhs} {expression.rel_op} {expression.rhs}"  # type: ignore[attr-defined]
    if isinstance(expression, sympy.And | sympy.Or):
        word = " and " if isinstance(expression, sympy.And) else " or "
        return word.join(sorted(map(_shown, expression.args)))
    return str(expression)
