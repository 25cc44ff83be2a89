"""The canonical pointwise functions as Triton expressions: one list for eager kernels and for Inductor's.

libdevice is CUDA's own library of functions, linked as code: a function has the same operations wherever it
is inlined, as no kernel contracts products and sums. Every quotient and root is rounded once.
"""

_LIBDEVICE = (
    "exp exp2 expm1 log log1p log2 log10 sin cos tan asin acos atan sinh cosh tanh acosh atanh "
    "erf erfc erfinv lgamma"
).split()
_LIBDEVICE_BINARY = ("pow", "atan2", "hypot", "fmod")


def divide(x: str, y: str, *, double: bool) -> str:
    """x / y, rounded once: a plain quotient of float32 is approximate in Triton."""
    return f"({x} / {y})" if double else f"triton.language.div_rn({x}, {y})"


def sqrt(x: str, *, double: bool) -> str:
    """The root of x, rounded once."""
    return f"libdevice.sqrt({x})" if double else f"tl.sqrt_rn({x})"


def expression(name: str, x: str, y: str = "", *, double: bool) -> str:
    """The function `name` of `functions.def` of x (and y), float64 if `double`, else float32."""
    if name in _LIBDEVICE:
        return f"libdevice.{name}({x})"
    if name in _LIBDEVICE_BINARY:
        return f"libdevice.{name}({x}, {y})"
    return {
        "sqrt": sqrt(x, double=double),
        "rsqrt": divide("1.0", sqrt(x, double=double), double=double),
        "sigmoid": divide("1.0", f"(1.0 + libdevice.exp(-({x})))", double=double),
    }[name]
