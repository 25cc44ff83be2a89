"""The pointwise functions in the C++ that Inductor generates."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from bi_compile.templates.pointwise.functions import expressions


@contextmanager
def canonical_codegen() -> Iterator[None]:
    """Generate C++ in which a transcendental function has one implementation, in vector and scalar code.

    Stock Inductor calls at::vec in vectorised loops and the C library elsewhere, so bits would depend on
    whether a fused kernel happened to vectorise.
    """
    from torch._inductor.codegen import cpp

    with ExitStack() as stack:
        for name, (arguments, expression) in expressions().items():
            vector, scalar = _vector_code(arguments, expression), _scalar_code(arguments, expression)
            vector.__name__ = scalar.__name__ = name  # the host looks the scalar form up by this name
            stack.enter_context(mock.patch.object(cpp.CppVecOverrides, name, staticmethod(vector)))
            stack.enter_context(mock.patch.object(cpp.CppOverrides, name, staticmethod(scalar)))
        # Before torch 2.13 this shortcut skips the rounding to bf16 and back that emulate_precision_casts
        # asks for; from 2.13 on the host skips it itself.
        stack.enter_context(mock.patch.object(cpp.CppKernel, "cache_dtype_convert", return_value=None))
        yield


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
