"""Arithmetic on complex numbers -> arithmetic on their parts, each operation rounded once.

Inductor generates no code for complex numbers, and eager kernels contract some of their products. What is
left in a graph copies complex numbers, makes them of real ones or looks at their parts. Ops without a line
here (transforms, linear algebra) stay as they are.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from bi_compile.passes.rewrite import Rewrite, rewrite

aten = torch.ops.aten
Tensor = torch.Tensor

_PARTS = (torch.complex64, torch.complex128)


def is_complex(first: Any, *others: Any) -> bool:
    """Whether an op on one or two of these computes in complex64 or complex128; in complex32 nobody does."""
    return (torch.result_type(first, *others) if others else first.dtype) in _PARTS


def made_of(real: Tensor, imag: Tensor) -> Tensor:
    """The complex tensor with these parts."""
    return torch.view_as_complex(torch.stack(torch.broadcast_tensors(real, imag), -1))


def _parts(value: Any) -> tuple[Any, Any]:
    """Real and imaginary part; the latter None for a real value, whose products have no second part."""
    if isinstance(value, complex):
        return value.real, value.imag
    if isinstance(value, Tensor) and value.dtype.is_complex:
        both = torch.view_as_real(value.resolve_conj())
        return both[..., 0], both[..., 1]
    return value, None


def _in_one_dtype(a: Any, b: Any) -> tuple[Any, Any]:
    """Both operands in the dtype of the result, or its real counterpart."""
    dtype = torch.result_type(a, b)
    real = torch.float64 if dtype == torch.complex128 else torch.float32

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(dtype if value.dtype.is_complex else real)

    return cast(a), cast(b)


def multiply(a: Any, b: Any) -> Tensor:
    """(ac - bd) + (ad + bc)i; by a real number each part alone."""
    (re, im), (other_re, other_im) = map(_parts, _in_one_dtype(a, b))
    if im is None:
        return made_of(re * other_re, re * other_im)
    if other_im is None:
        return made_of(re * other_re, im * other_re)
    return made_of(re * other_re - im * other_im, re * other_im + im * other_re)


def divide(a: Any, b: Any) -> Tensor:
    """By the conjugate of the divisor, scaled by its larger part so that no square overflows."""
    (re, im), (other_re, other_im) = map(_parts, _in_one_dtype(a, b))
    if other_im is None:
        return made_of(re / other_re, im / other_re)
    im = 0 if im is None else im
    scale = torch.maximum(_tensor(other_re, re).abs(), _tensor(other_im, re).abs())
    c, d = other_re / scale, other_im / scale
    norm = (c * c + d * d) * scale
    return made_of((re * c + im * d) / norm, (im * c - re * d) / norm)


def _tensor(value: Any, like: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.full_like(like, value)


def add(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    """Part by part. A real operand leaves the imaginary part as it is."""
    if alpha != 1:
        b = b * alpha
    (re, im), (other_re, other_im) = map(_parts, _in_one_dtype(a, b))
    if im is None or other_im is None:
        one = other_im if im is None else im
        shape = torch.broadcast_shapes(*(v.shape for v in (re, other_re) if isinstance(v, Tensor)))
        return made_of(re + other_re, one.expand(shape) if isinstance(one, Tensor) else _tensor(one, re))
    return made_of(re + other_re, im + other_im)


def subtract(a: Any, b: Any, alpha: Any = 1) -> Tensor:
    """a + (-b), which rounds alike."""
    return add(a, -b if alpha == 1 else -(b * alpha))


def either(complex_build: Callable[..., Any], build: Callable[..., Any]) -> Callable[..., Any]:
    """A build that takes complex calls to the first and all others to the second."""

    def choose(*args: Any, **kwargs: Any) -> Any:
        return (complex_build if is_complex(*args) else build)(*args, **kwargs)

    return choose


def by_parts(build: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for the build of a linear op of one tensor: of complex numbers each part alone."""

    @wraps(build)
    def choose(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not is_complex(x):
            return build(x, *args, **kwargs)
        re, im = _parts(x)
        return made_of(build(re, *args, **kwargs), build(im, *args, **kwargs))

    return choose


def by_products(build: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    """Decorator for the build of a product of two tensors: of complex numbers from four real products."""

    @wraps(build)
    def choose(a: Tensor, b: Tensor) -> Any:
        if not is_complex(a, b):
            return build(a, b)
        (re, im), (other_re, other_im) = _parts(a), _parts(b)
        return made_of(build(re, other_re) - build(im, other_im), build(re, other_im) + build(im, other_re))

    return choose


def _of_one(*ops: torch._ops.OpOverload) -> Callable[[Callable[..., Any]], tuple[Rewrite, ...]]:
    """The function computes `ops` from both parts; calls on real numbers stay."""

    def wrap(function: Callable[[Tensor, Tensor], Tensor]) -> tuple[Rewrite, ...]:
        def build(x: Tensor) -> Any:
            return function(*_parts(x)) if is_complex(x) else NotImplemented

        return rewrite(*ops)(build)

    return wrap


_neg = _of_one(aten.neg.default)(lambda re, im: made_of(-re, -im))
_conj = _of_one(aten._conj.default, aten._conj_physical.default, aten.conj_physical.default)(
    lambda re, im: made_of(re, -im)
)
_exp = _of_one(aten.exp.default)(lambda re, im: made_of(re.exp() * im.cos(), re.exp() * im.sin()))
_abs = _of_one(aten.abs.default)(torch.hypot)
_reciprocal = _of_one(aten.reciprocal.default)(lambda re, im: divide(1, made_of(re, im)))


@rewrite(aten.sgn.default)
def _sgn(x: Tensor) -> Any:
    if not is_complex(x):
        # Inductor has no `sgn`: its own decomposition, which this one replaces, does the same.
        return NotImplemented if x.dtype.is_complex else x.sign()
    re, im = _parts(x)
    length = torch.hypot(re, im)
    length = torch.where(length == 0, 1, length)
    return made_of(re / length, im / length)


@rewrite(aten.polar.default)
def _polar(abs: Tensor, angle: Tensor) -> Any:
    return made_of(abs * angle.cos(), abs * angle.sin())


@rewrite(aten.complex.default)
def _complex(real: Tensor, imag: Tensor) -> Any:
    return made_of(real, imag) if real.dtype != torch.float16 else NotImplemented


@rewrite(torch.ops.prims.convert_element_type.default)
def _convert(x: Tensor, dtype: torch.dtype) -> Any:
    if dtype not in _PARTS or x.dtype == torch.complex32:
        return NotImplemented
    real = torch.float64 if dtype == torch.complex128 else torch.float32
    re, im = _parts(x)
    if im is None:  # exact, and one copy; what runs sample by sample makes it itself
        return NotImplemented if x.dtype == real else x.to(real).to(dtype)
    return made_of(re.to(real), im.to(real))


REWRITES = (*_neg, *_conj, *_exp, *_abs, *_reciprocal, *_sgn, *_polar, *_complex, *_convert)
