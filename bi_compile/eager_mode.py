"""`with bi_compile.eager():` runs the canonical ops one by one, for code outside compiled graphs.

The same rewrites as in compiled graphs, put in at the same two places: whole ops where PyTorch's functions
are called, ATen ops below autograd. So eager results equal compiled ones bit for bit, and are their oracle.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bi_compile.analysis.order import base_name, is_order_free
from bi_compile.errors import UnsupportedOpError
from bi_compile.options import Options
from bi_compile.passes.capture import CAPTURED
from bi_compile.pipeline import canonical, decompositions
from bi_compile.templates.pointwise import binary, unary
from bi_compile.templates.pointwise.functions import expressions


@contextmanager
def eager(*, on_unsupported: str = "error") -> Iterator[None]:
    """Run every PyTorch op in the block, gradients included, by its canonical definition.

    on_unsupported: "error" raises UnsupportedOpError for an op that has none; "warn" and "ignore" run it as
        stock PyTorch does.
    Raises OptionError for another value.
    """
    options = Options.parse({"on_unsupported": on_unsupported})
    with _WholeOps(), _CanonicalOps(options.on_unsupported):
        yield


class _WholeOps(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target: Any = CAPTURED.get(func, func)
        return target(*args, **(kwargs or {}))


class _CanonicalOps(TorchDispatchMode):
    def __init__(self, on_unsupported: str) -> None:
        super().__init__()
        self._on_unsupported = on_unsupported

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "bi_compile":
            return func(*args, **kwargs)
        functional = _functional_form(func)
        if functional is not None and not _runs_as_it_is(functional, args, kwargs):
            destination = kwargs.pop("out", None) if "out" in kwargs else args[0]
            result = self.__torch_dispatch__(functional, types, args, kwargs)
            return destination.copy_(result)
        for build in (CAPTURED.get(func), canonical().get(func), transcendental().get(func)):
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

    def _unsupported(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._on_unsupported == "error":
            shapes = [f"{t.dtype}{list(t.shape)}".removeprefix("torch.") for t in _tensors((args, kwargs))]
            raise UnsupportedOpError(
                str(func),
                signature=f"inputs {', '.join(shapes) or 'none'}",
                where=None,
                reason="its result may depend on an order of evaluation that nobody has fixed",
            )
        if self._on_unsupported == "warn":
            warnings.warn(f"bi_compile.eager: {func} runs as stock PyTorch", RuntimeWarning, stacklevel=2)
        return func(*args, **kwargs)


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
    """The op without mutation behind `add_` or `add.out`, or None."""
    if func.namespace != "aten" or not func._schema.is_mutable:
        return None
    name, overload = base_name(func), func._overloadname
    if name.endswith("_") and hasattr(torch.ops.aten, name[:-1]):
        return getattr(getattr(torch.ops.aten, name[:-1]), overload, None)
    outs = [a.name for a in func._schema.arguments if a.is_out]
    if outs == ["out"]:
        packet = getattr(torch.ops.aten, name)
        plain = overload.removesuffix("_out").removesuffix("out") or "default"
        return getattr(packet, plain, None)
    return None


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
