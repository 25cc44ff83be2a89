"""`with bi_compile.eager():` runs the canonical ops one by one, for code outside compiled graphs.

The same rewrites as in compiled graphs, put in at the same two places: whole ops where PyTorch's functions
are called, ATen ops below autograd. So eager results equal compiled ones bit for bit, and are their oracle.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bi_compile import dynamo, dynamo_tracing
from bi_compile.analysis.order import NO_ORDER, base_name, is_order_free, why_open
from bi_compile.errors import UnsupportedOpError
from bi_compile.options import Options
from bi_compile.passes.associations import choose_paths_by_equation
from bi_compile.passes.capture import captured
from bi_compile.pipeline import canonical, decompositions
from bi_compile.templates.pointwise import binary, unary
from bi_compile.templates.pointwise.functions import expressions
from bi_compile.user_lines import is_users, line_in


def eager(*, on_unsupported: str = "error") -> "Block":
    """Run every PyTorch op in the block, gradients included, by its canonical definition.

    As a decorator, `@bi_compile.eager()`, it also keeps the function out of compiled graphs.

    on_unsupported: "error" raises UnsupportedOpError for an op that has none; "warn" and "ignore" run it as
        stock PyTorch does.
    Raises OptionError for another value.
    """
    return Block(Options.parse({"on_unsupported": on_unsupported}).on_unsupported)


class Block:
    """What `eager` returns: a context manager, and a decorator."""

    def __init__(self, on_unsupported: str) -> None:
        self._on_unsupported = on_unsupported
        self._open: list[ExitStack] = []

    def __enter__(self) -> None:
        dynamo.notice_flushed_subnormals()
        with ExitStack() as modes:
            modes.enter_context(dynamo_tracing.UncompiledFlexAttention())
            modes.enter_context(_WholeOps())
            modes.enter_context(_CanonicalOps(self._on_unsupported))
            self._open.append(modes.pop_all())

    def __exit__(self, *error: Any) -> None:
        self._open.pop().__exit__(*error)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with Block(self._on_unsupported):
                return function(*args, **kwargs)

        return torch.compiler.disable(run, reason=dynamo.EAGER)


_NESTED = "make it with layout=torch.jagged"
_HIGHER_ORDER = "write it with ordinary ops"
_APART = (
    "outside graphs, attention that gives its weights, is not of four dims or has values of another size "
    "than keys is computed op by op, with other bits than in graphs"
)

_BY_COST = "outside graphs, multi_dot multiplies in the order that costs least, which the batch has a say in"


class _WholeOps(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target: Any = captured(func) or func
        return target(*args, **(kwargs or {}))


class _CanonicalOps(TorchDispatchMode):
    def __init__(self, on_unsupported: str) -> None:
        super().__init__()
        self._on_unsupported = on_unsupported

    # So that flex_attention and its like arrive here, to be refused by name.
    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(t.__name__ == "NestedTensor" for t in types):
            return NotImplemented  # PyTorch's own class takes it apart: what it computes arrives here again
        if any(tensor.is_nested for tensor in _tensors((args, kwargs))):
            return self._unsupported(func, args, kwargs, "a nested tensor of layout torch.strided", _NESTED)
        if isinstance(func, torch._ops.HigherOrderOperator):
            if (build := captured(func)) is not None:
                with self:
                    return build(*args, **kwargs)
            return self._unsupported(func, args, kwargs, "an operator that takes functions", _HIGHER_ORDER)
        if func.namespace == "bi_compile":
            return func(*args, **kwargs)
        functional = _functional_form(func)
        if functional is not None and not _runs_as_it_is(functional, args, kwargs):
            destination = kwargs["out"] if "out" in kwargs else args[0]
            inputs = {name: value for name, value in kwargs.items() if name != "out"}
            result = self.__torch_dispatch__(functional, types, args, inputs)
            if "out" in kwargs and destination.shape != result.shape:
                destination.resize_(result.shape)
            return destination.copy_(result)
        for build in (captured(func), canonical().get(func), transcendental().get(func)):
            if build is not None:
                with self:
                    result = build(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        if _is_order_free(func, args, kwargs):
            return func(*args, **kwargs)
        # Below autograd PyTorch's composite ops arrive whole: `decompose` calls their definition.
        for decompose in (decompositions().get(func), func.decompose):
            if decompose is not None:
                with self:
                    result = decompose(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        return self._unsupported(func, args, kwargs)

    def _unsupported(
        self, func: Any, args: Any, kwargs: Any, what: str | None = None, reason: str | None = None
    ) -> Any:
        """Refuse a call, or run it as stock PyTorch and say so, as the options have it."""
        reason = reason or why_open(str(func))
        if self._on_unsupported == "error":
            raise _refusal(func, what or _inputs(args, kwargs), reason)
        if self._on_unsupported == "report":
            stack = traceback.extract_stack()
            why = "" if reason == NO_ORDER else f": {reason}"
            dynamo.leak("outside graphs", f"outside graphs, {func} runs as stock PyTorch{why}", stack)
        if self._on_unsupported == "warn":
            warnings.warn(f"bi_compile.eager: {func} runs as stock PyTorch", RuntimeWarning, stacklevel=2)
        return func(*args, **kwargs)


def _inputs(args: Any, kwargs: Any) -> str:
    shapes = [f"{t.dtype}{list(t.shape)}".removeprefix("torch.") for t in _tensors((args, kwargs))]
    return f"inputs {', '.join(shapes) or 'none'}"


def _refusal(func: Any, signature: str, reason: str) -> UnsupportedOpError:
    where = line_in(traceback.extract_stack())
    return UnsupportedOpError(str(func), signature=signature, where=where, reason=reason, compiling=False)


class OutsideGraphs(_CanonicalOps):
    """Computes canonically what Dynamo runs between graphs and instead of them, and reports what it cannot.

    Whole ops arrive taken apart: Dynamo would trace a mode that catches functions.
    """

    def __init__(self) -> None:
        super().__init__("report")

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Asked by Dynamo, which otherwise compiles nothing under a mode."""
        return True

    @dynamo.unseen
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in _tensors((args, kwargs)))
        if differentiated and any(r.alias_info is None for r in func._schema.returns):
            dynamo.leak("gradient outside graphs", "outside graphs, gradients are stock PyTorch's")
        elif _is_of_attention(func):
            dynamo.leak("attention outside graphs", _APART, traceback.extract_stack())
        if _is_of_multi_dot(func):
            dynamo.leak("multi_dot outside graphs", _BY_COST, traceback.extract_stack())
        return super().__torch_dispatch__(func, types, args, kwargs)


def _is_of_attention(func: Any) -> bool:
    """Whether an op is the softmax of an attention taken apart by PyTorch."""
    if func is not torch.ops.aten._softmax.default:
        return func is torch.ops.aten._safe_softmax.default
    code = F.multi_head_attention_forward.__code__
    return any(frame.f_code is code for frame, _ in traceback.walk_stack(None))


def _is_of_multi_dot(func: Any) -> bool:
    """Whether a product may be one of multi_dot's: the user's code that asks for it names that."""
    if func is not torch.ops.aten.mm.default:
        return False
    for frame, _ in traceback.walk_stack(None):
        if is_users(frame.f_code.co_filename):
            return not {"multi_dot", "chain_matmul"}.isdisjoint(frame.f_code.co_names)
    return False


def _is_order_free(func: Any, args: Any, kwargs: Any) -> bool:
    return is_order_free(func, {tensor.dtype for tensor in _tensors((args, kwargs))}, args, kwargs)


def _runs_as_it_is(func: Any, args: Any, kwargs: Any) -> bool:
    return func not in canonical() and func not in transcendental() and _is_order_free(func, args, kwargs)


@cache
def transcendental() -> dict[Any, Callable[..., Any]]:
    """ATen ops that are one canonical pointwise function each."""
    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {}
    for name, (arguments, _) in expressions().items():
        packet = getattr(aten, name)
        if arguments == 1:
            table[packet.default] = _unary(name)
            continue
        for overload in ("default", "Tensor", "Scalar", "Tensor_Tensor"):
            if hasattr(packet, overload):
                table[getattr(packet, overload)] = _binary(name)
    return table


def _unary(name: str) -> Callable[..., Any]:
    def build(x: torch.Tensor) -> Any:
        if x.dtype.is_complex:
            return NotImplemented
        return unary(x if x.dtype.is_floating_point else x.to(torch.get_default_dtype()), name)

    return build


def _binary(name: str) -> Callable[..., Any]:
    def build(x: Any, y: Any) -> Any:
        dtype = torch.result_type(x, y)
        if not dtype.is_floating_point:
            return NotImplemented
        device = x.device if isinstance(x, torch.Tensor) else y.device
        return binary(
            torch.as_tensor(x, dtype=dtype, device=device),
            torch.as_tensor(y, dtype=dtype, device=device),
            name,
        )

    return build


@cache
def _functional_form(func: Any) -> Any:
    """The op without mutation behind `add_` or `add.out`, of the same arguments, or None."""
    if func.namespace != "aten" or not func._schema.is_mutable:
        return None
    name, outs = base_name(func), [a.name for a in func._schema.arguments if a.is_out]
    if outs == ["out"]:
        packet = getattr(torch.ops.aten, name)
    elif name.endswith("_") and hasattr(torch.ops.aten, name[:-1]):
        packet = getattr(torch.ops.aten, name[:-1])
    else:
        return None
    # Overloads of one name may take others: pow_.Scalar has a tensor to the power of a number, pow.Scalar the
    # reverse. What creates tensors also takes a dtype and a device where it has no destination.
    wanted = _arguments(func)
    forms = [form for o in packet.overloads() if not (form := getattr(packet, o))._schema.is_mutable]
    same = [form for form in forms if _arguments(form) == wanted]
    more = [form for form in forms if wanted <= _arguments(form)]
    return next(iter(same or more), None)


def _arguments(op: Any) -> set[tuple[str, str]]:
    return {(a.name, str(a.type)) for a in op._schema.arguments if not a.is_out}


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


choose_paths_by_equation(dynamo.in_effect)
