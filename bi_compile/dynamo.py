"""Dynamo, and what it runs without asking a backend.

Its privates are named here, in `dynamo_tracing` and in `dynamo_sizes`, and nowhere else.

Dynamo hands a backend the graphs it captured. The rest of a compiled function (a frame it skips, the call at
which a graph ended, all of it once a stance or a setting says so) runs as ordinary PyTorch code. The hooks
below watch functions compiled with this backend, and no others. While such a function is called, and as soon
as anything in it is known to run outside graphs, a mode computes that canonically.
"""

import functools
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from bi_compile.dynamo_sizes import (
    Asked,
    about_the_batch,
    current_trace,
    inputs_of,
    loops_over_samples,
    questions_in,
    watch_sizes,
)
from bi_compile.dynamo_tracing import trace_whole_ops
from bi_compile.errors import (
    BatchInvariantError,
    BatchSizeWarning,
    GraphBreakWarning,
    LeakWarning,
    RecompileLimitError,
)
from bi_compile.report import Break, Leak, Question, among, record_break, record_leak, record_question
from bi_compile.user_lines import TORCH, line_in, user_frame


@dataclass
class _Attempt:
    """One frame on its way through Dynamo."""

    breaks: list[tuple[str, Sequence[traceback.FrameSummary]]] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)
    compiling: bool = False
    error: Exception | None = None
    asked: bool = False
    captured: bool = False


class _Thread(threading.local):
    """calls: of compiled functions, now. left: whether one has just ended. mode: the one outside graphs."""

    def __init__(self) -> None:
        self.calls = 0
        self.left = False
        self.mode: TorchDispatchMode | None = None
        self.attempts: list[_Attempt] = []


EAGER = "bi_compile.eager"
"""The reason that Dynamo gives for graphs that end at functions under `bi_compile.eager()`."""

_thread = _Thread()
_backend: Callable[..., Any] | None = None
_outside: type[TorchDispatchMode] | None = None
_leaves_graphs = False
_warned: set[Leak | str | None] = set()


def watch(
    backend: Callable[..., Any],
    outside: type[TorchDispatchMode],
    in_place_of: Mapping[Any, Callable[..., Any]],
) -> None:
    """From now on, what functions compiled with `backend` run outside graphs runs under `outside()`.

    in_place_of: as in `trace_whole_ops`.
    """
    global _backend, _outside
    from torch._dynamo import convert_frame, eval_frame, trace_rules

    if _backend is not None:
        return
    _backend, _outside = backend, outside
    for module in (__name__, outside.__module__):
        trace_rules.add(module)  # what watches and computes is itself no code to be compiled
    _wrap(eval_frame._TorchDynamoContext, "__init__", _context)
    _wrap(eval_frame, "_maybe_set_eval_frame", _callback)
    _wrap(convert_frame.CatchErrorsWrapper, "__call__", _frame)
    _wrap(convert_frame.ConvertFrameAssert, "__call__", _capture)
    trace_whole_ops(_is_tracing, in_place_of)
    watch_sizes(
        lambda: _is_tracing() and not _thread.attempts[-1].compiling,
        lambda asked: _thread.attempts[-1].questions.append(asked),
    )
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        leak("disabled", "every compiled function runs as stock PyTorch: TORCHDYNAMO_DISABLE=1")


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def watched(*args: Any, **kwargs: Any) -> Any:
        return around(stock, *args, **kwargs)

    setattr(owner, name, watched)


def _is_tracing() -> bool:
    return bool(_thread.attempts)


def _context(stock: Callable[..., Any], self: Any, callback: Any, *args: Any, **kwargs: Any) -> None:
    """torch.compile makes the object whose hooks surround each call of the compiled function."""
    stock(self, callback, *args, **kwargs)
    if _is_ours(callback):
        self.enter_exit_hooks.append(_enter)


def _enter() -> Callable[[], None]:
    from torch._dynamo import config, eval_frame

    stance = eval_frame._stance
    if stance.backend is not None:
        leak("stance", f"torch.compiler.set_stance compiles with {stance.backend!r} instead of this backend")
    _thread.calls += 1
    if _leaves_graphs or config.disable or stance.stance != "default" or torch._C._len_torch_dispatch_stack():
        _compute_outside_graphs()
    return _leave


def _leave() -> None:
    _thread.calls -= 1
    _thread.left = True


def _callback(stock: Callable[..., Any], callback: Any) -> Any:
    """The last act of a call: before it, Dynamo puts back the dispatcher's state as it was at the start."""
    result = stock(callback)
    if _thread.left and (mode := _thread.mode) is not None:
        mode.__exit__(None, None, None)
        _thread.mode = mode if _thread.calls else None
        if _thread.calls:
            mode.__enter__()
    _thread.left = False
    return result


def _mode_is_ours() -> bool:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes

    return any(type(mode).__module__.startswith("bi_compile.") for mode in modes())


@torch.compiler.assume_constant_result
def in_effect() -> bool:
    """Whether this thread is under `bi_compile.eager()` or in a function compiled with the backend."""
    return bool(_thread.calls) or _mode_is_ours()


def _compute_outside_graphs() -> None:
    assert _outside is not None
    if not _thread.calls or _thread.mode is not None:
        return
    if not _mode_is_ours():
        _thread.mode = _outside()
        _thread.mode.__enter__()


def unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with nothing in it compiled when Dynamo's eyes are on its caller."""
    from torch._C._dynamo.eval_frame import set_eval_frame

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        seen_by = set_eval_frame(None)
        try:
            return function(*args, **kwargs)
        finally:
            set_eval_frame(seen_by)

    return run


def graph_alone(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, a graph, without the mode that is meant for what is outside graphs."""

    from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode, _push_mode

    def run(*args: Any) -> Any:
        mode = _thread.mode
        if mode is None or _get_current_dispatch_mode() is not mode:
            return compiled(*args)
        _pop_mode()
        try:
            return compiled(*args)
        finally:
            _push_mode(mode)

    return run


def _frame(stock: Callable[..., Any], self: Any, frame: Any, *args: Any, **kwargs: Any) -> Any:
    """Dynamo is asked for the code of a frame. It may decline, and the frame then runs as it is."""
    if not _is_ours(self):
        return stock(self, frame, *args, **kwargs)
    attempt = _Attempt()
    _thread.attempts.append(attempt)
    try:
        result = stock(self, frame, *args, **kwargs)
    finally:
        _thread.attempts.pop()
    _report(attempt, frame)
    return result


def _capture(stock: Callable[..., Any], self: Any, frame: Any, *args: Any, **kwargs: Any) -> Any:
    """Dynamo captures a frame."""
    if not _thread.attempts:
        return stock(self, frame, *args, **kwargs)
    from torch._dynamo.utils import graph_break_reasons

    attempt, before = _thread.attempts[-1], len(graph_break_reasons)
    attempt.asked = True
    try:
        result = stock(self, frame, *args, **kwargs)
        attempt.captured = result.guarded_code is not None
        return result
    except Exception as error:
        attempt.error = error
        raise
    finally:
        attempt.breaks += [(r.reason, r.user_stack) for r in graph_break_reasons[before:] if r.graph_break]


def _report(attempt: _Attempt, frame: Any) -> None:
    """Act on what became of a frame: Dynamo has swallowed its errors."""
    global _leaves_graphs
    _tell_questions(attempt)
    error = attempt.error
    refusal = getattr(error, "inner_exception", error)
    if error is not None and isinstance(refusal, BatchInvariantError):
        raise error  # under suppress_errors the frame would run nevertheless
    code = frame.f_code
    skipped = not attempt.asked and not code.co_filename.startswith(_CALLS)
    reason = _sentence(str(error)) if error is not None else "Dynamo skips its file" if skipped else None
    if reason is not None and _has_tensors(frame):
        function = f"{code.co_filename}:{code.co_firstlineno}, in {code.co_name}"
        stack = getattr(error, "real_stack", ())
        library = error is None and code.co_filename.startswith(_LIBRARIES)
        why = f"all of {code.co_name!r} runs outside graphs: {reason}"
        _tell_break(Break(why, line_in(stack) or function, library), stack, meant=library)
    elif error is None:
        reason = None
        for broken, stack in attempt.breaks:
            _tell_break(Break(_sentence(broken), line_in(stack)), stack, meant=EAGER in broken)
    if reason is not None or attempt.breaks or (attempt.asked and not attempt.captured):
        _leaves_graphs = True
        _compute_outside_graphs()


def _tell_break(found: Break, stack: Sequence[traceback.FrameSummary], *, meant: bool) -> None:
    """meant: by the user's `bi_compile.eager()`, or for a function that users do not know."""
    record_break(found)
    if not meant:
        _warn(f"graph break at {found.where}", GraphBreakWarning(found.reason, where=found.where), stack)


def tell_questions(graph: fx.Graph) -> list[Question]:
    """Report what was asked of the batch's size on the way to `graph`, which is being compiled."""
    if not _thread.attempts:
        return []
    _thread.attempts[-1].compiling = True
    return _tell_questions(_thread.attempts[-1], graph)


def _tell_questions(attempt: _Attempt, graph: fx.Graph | None = None) -> list[Question]:
    """graph: None at the end of a frame, where the questions are left that led to none."""
    trace = current_trace() if graph else attempt.questions[-1].trace if attempt.questions else None
    asked = [question for question in attempt.questions if question.trace is trace]
    asked += questions_in(graph) if graph else ()
    asked = [q for q in asked if q.rounds is None or (graph and not loops_over_samples(graph, q.rounds))]
    attempt.questions.clear()
    told = []
    for shown, relation, question in about_the_batch(asked, inputs_of(graph) if graph else ()):
        found = Question(shown, relation, line_in(question.stack))
        if found not in told:
            told.append(found)
            record_question(found)
            warning = BatchSizeWarning(found.reason, among=among([found]), where=found.where)
            _warn(found.where, warning, question.stack)
    return told


def notice_flushed_subnormals() -> None:
    """Report a calling thread that takes subnormal numbers as zero, which the others need not do."""
    smallest = sys.float_info.min
    if smallest / 2 == 0.0:
        leak(
            "subnormal numbers",
            "torch.set_flush_denormal(True) holds in one thread: whether a subnormal number is zero depends "
            "on the thread that computes its row",
        )


def leak(kind: str, reason: str, stack: Sequence[traceback.FrameSummary] = ()) -> None:
    """Report, and warn once for each of the user's lines, that something is computed as by stock PyTorch."""
    found = Leak(kind, reason, line_in(stack))
    record_leak(found)
    _warn(found, LeakWarning(reason, kind=kind, where=found.where), stack)


def _warn(key: Leak | str | None, warning: Warning, stack: Sequence[traceback.FrameSummary]) -> None:
    if key in _warned:  # a registry of the warnings module is emptied whenever anybody changes a filter
        return
    user = user_frame(stack)
    warnings.warn_explicit(
        warning,
        type(warning),
        filename=user.filename if user else "bi_compile",
        lineno=(user.lineno or 0) if user else 0,
    )
    _warned.add(key)


def _is_ours(callback: Any) -> bool:
    """Whether Dynamo's chain of wrappers ends in the watched backend."""
    while callback is not None and callback is not _backend:
        names = ("_torchdynamo_orig_backend", "compiler_fn", "func")
        callback = next((inner for n in names if (inner := getattr(callback, n, None)) is not None), None)
    return callback is not None


def _has_tensors(frame: Any) -> bool:
    from torch._dynamo.convert_frame import has_tensor_in_frame

    return has_tensor_in_frame(frame)


def _sentence(reason: str) -> str:
    """Dynamo's reason in one line: its explanation, if it has one."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()] or ["no reason given"]
    explanations = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")]
    return re.sub(r" at 0x[0-9a-f]+", "", (explanations or lines)[0]).rstrip(".")


_LIBRARIES = (f"{TORCH}{os.sep}", "<frozen ")
_CALLS = tuple(
    str(TORCH / part) for part in ("_dynamo", "_compile", "compiler", "_jit", "nn/modules/module.py")
)
"""Where calling a module or a graph computes nothing by itself."""


_frames: set[int] = set()


class _RecompileLimit(logging.Filter):
    """Turns Dynamo's silent step to eager execution into an error, for functions this backend compiled."""

    def filter(self, record: logging.LogRecord) -> bool:
        from torch._guards import CompileContext

        if not str(record.msg).startswith("torch._dynamo hit config."):
            return True
        context = CompileContext.current_compile_id()
        if context is not None and context.frame_id in _frames:
            arguments = record.args if isinstance(record.args, tuple) else ()
            limit, value, function = (*map(str, arguments[:3]), "", "", "")[:3]
            raise RecompileLimitError(limit, value, function)
        return True


def watch_recompile_limit() -> None:
    """Refuse, for the frame being compiled, the eager execution that follows Dynamo's recompile limit."""
    from torch._guards import CompileContext

    context = CompileContext.current_compile_id()
    if context is not None and context.frame_id is not None:
        _frames.add(context.frame_id)
    logger = logging.getLogger("torch._dynamo.convert_frame")
    if not any(isinstance(f, _RecompileLimit) for f in logger.filters):
        logger.addFilter(_RecompileLimit())
