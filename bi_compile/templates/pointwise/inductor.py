"""The pointwise functions in the C++ and in the Triton kernels that Inductor generates."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from bi_compile.templates.pointwise import gpu_functions
from bi_compile.templates.pointwise.functions import expressions


@contextmanager
def canonical_codegen() -> Iterator[None]:
    """Generate code in which a transcendental function has one implementation.

    In C++, stock Inductor calls at::vec in vectorised loops and the C library elsewhere, so bits would
    depend on whether a fused kernel happened to vectorise. In Triton, its quotients are approximate and
    some functions are not those of eager calls.
    """
    from torch._inductor import index_propagation, lowering
    from torch._inductor.codegen import cpp, triton
    from torch.utils._sympy import value_ranges

    with ExitStack() as stack:
        kernels = triton.TritonKernelOverrides
        # It wraps functions of its own for float64 once, with the first kernel: not while ours stand in.
        kernels._setup_libdevice_routing()
        for name, (arguments, _) in expressions().items():
            code = _triton_code(name, arguments)
            stack.enter_context(mock.patch.object(kernels, name, staticmethod(code)))
        stack.enter_context(mock.patch.object(kernels, "truediv", staticmethod(_triton_quotient)))
        stack.enter_context(mock.patch.object(kernels, "neg", staticmethod(_triton_negative)))
        constant = _signed_constant(triton.TritonOverrides._shaped_constant)
        stack.enter_context(
            mock.patch.object(triton.TritonOverrides, "_shaped_constant", staticmethod(constant))
        )
        # Before torch 2.13 a cast to bf16 or fp16 that the graph asks for is none in a fused kernel.
        cast = _rounding_cast(kernels.to_dtype)
        stack.enter_context(mock.patch.object(kernels, "to_dtype", staticmethod(cast)))
        # On other devices than the CPU it multiplies with the reciprocal of a divisor that it knows.
        stack.enter_context(mock.patch.object(lowering, "get_constant_value", return_value=None))
        # Its arithmetic on constants, meant for indices, has no roundings between the steps.
        symbolic = index_propagation.SymPyOps
        for name in ("constant", "to_dtype"):
            stack.enter_context(
                mock.patch.object(symbolic, name, staticmethod(_integers_only(symbolic, name)))
            )
        ranges = value_ranges.SymPyValueRangeAnalysis
        stack.enter_context(mock.patch.object(ranges, "eq", staticmethod(_eq_of_booleans(ranges.eq))))
        for name, (arguments, expression) in expressions().items():
            vector, scalar = _vector_code(arguments, expression), _scalar_code(arguments, expression)
            vector.__name__ = scalar.__name__ = name  # the host looks the scalar form up by this name
            stack.enter_context(mock.patch.object(cpp.CppVecOverrides, name, staticmethod(vector)))
            stack.enter_context(mock.patch.object(cpp.CppOverrides, name, staticmethod(scalar)))
        # Before torch 2.13 this shortcut skips the rounding to bf16 and back that emulate_precision_casts
        # asks for; from 2.13 on the host skips it itself.
        stack.enter_context(mock.patch.object(cpp.CppKernel, "cache_dtype_convert", return_value=None))
        yield


def _integers_only(symbolic: Any, name: str) -> Callable[..., Any]:
    stock = getattr(symbolic, name)

    def build(value: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        return NotImplemented if dtype.is_floating_point else stock(value, dtype, *args, **kwargs)

    return build


def _eq_of_booleans(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Its ranges of values compare booleans by their order, which they do not have."""
    from torch.utils._sympy.value_ranges import ValueRanges

    def eq(a: Any, b: Any) -> Any:
        ranges = [ValueRanges.wrap(a), ValueRanges.wrap(b)]
        if not any(r.is_bool for r in ranges):
            return stock(a, b)
        if all(r.is_singleton() for r in ranges):
            one, other = (int(bool(r.lower)) if r.is_bool else r.lower for r in ranges)
            return stock(one, other)
        return ValueRanges.unknown_bool()

    return eq


def _rounding_cast(stock: Callable[..., str]) -> Callable[..., str]:
    def to_dtype(x: Any, dtype: Any, src_dtype: Any = None, use_compute_types: bool = True) -> str:
        if use_compute_types and dtype in (torch.bfloat16, torch.float16):
            return f"({stock(x, dtype, src_dtype, use_compute_types=False)}).to(tl.float32)"
        return stock(x, dtype, src_dtype, use_compute_types)

    return to_dtype


def _triton_code(name: str, arguments: int) -> Callable[..., str]:
    def unary(x: Any) -> str:
        return gpu_functions.expression(name, _wide(x), double=_is_double(x))

    def binary(x: Any, y: Any) -> str:
        double = _is_double(x, y)
        return gpu_functions.expression(name, _wide(x, double), _wide(y, double), double=double)

    code = unary if arguments == 1 else binary
    code.__name__ = name
    return code


def _triton_quotient(x: Any, y: Any) -> str:
    double = _is_double(x, y)
    return gpu_functions.divide(_wide(x, double), _wide(y, double), double=double)


def _triton_negative(x: Any) -> str:
    # Triton's -x is 0 - x, which is +0 for x = +0.
    floating = getattr(getattr(x, "dtype", None), "is_floating_point", False)
    return f"({x} * -1.0)" if floating else f"-{x}"


def _signed_constant(stock: Callable[..., str]) -> Callable[..., str]:
    """Triton takes every number that equals 0 for +0; torch 2.13 knows that."""

    def constant(value: Any, dtype: torch.dtype, shape: Any) -> str:
        if dtype.is_floating_point and value == 0 and math.copysign(1.0, value) < 0:
            return f"({stock(0.0, dtype, shape)} * -1.0)"
        return stock(value, dtype, shape)

    return constant


def _is_double(*values: Any) -> bool:
    return any(str(getattr(value, "dtype", "")) == "torch.float64" for value in values)


def _wide(value: Any, double: bool | None = None) -> str:
    """The value in the dtype of the computation."""
    double = _is_double(value) if double is None else double
    wanted = "float64" if double else "float32"
    return (
        f"{value}" if str(getattr(value, "dtype", "")) == f"torch.{wanted}" else f"({value}).to(tl.{wanted})"
    )


def _vector_code(arguments: int, expression: str) -> Callable[..., str]:
    if arguments == 1:

        def unary(x: Any) -> str:
            return (
                f"[](const auto& x) {{ using V = std::decay_t<decltype(x)>; return V({expression}); }}({x})"
            )

        return unary

    def binary(x: Any, y: Any) -> str:
        return (
            "[](const auto& x, const auto& y) "
            f"{{ using V = std::decay_t<decltype(x)>; return V({expression}); }}({x}, {y})"
        )

    return binary


def _scalar_code(arguments: int, expression: str) -> Callable[..., str]:
    # A whole vector of the value, and its first lane.
    body = (
        "using S = std::conditional_t<std::is_same_v<std::decay_t<decltype(p)>, double>, double, float>; "
        "using V = at::vec::Vectorized<S>; "
    )
    tail = f"S out[V::size()]; V({expression}).store(out); return out[0];"
    if arguments == 1:

        def unary(x: Any) -> str:
            return f"[](auto p) {{ {body}V x(static_cast<S>(p)); {tail} }}({x})"

        return unary

    def binary(x: Any, y: Any) -> str:
        return (
            f"[](auto p, auto q) {{ {body}V x(static_cast<S>(p)); V y(static_cast<S>(q)); {tail} }}({x}, {y})"
        )

    return binary
