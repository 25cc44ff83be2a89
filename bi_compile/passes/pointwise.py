"""Pointwise ops of which hosts have several roundings -> one sequence of rounded operations.

Inductor and eager PyTorch contract some of them to fused multiply-adds, or choose between formulas.
"""

import math
from typing import Any

import torch

from bi_compile.passes.complex_numbers import add, divide, either, is_complex, multiply, subtract
from bi_compile.passes.rewrite import is_floating, opmath, rewrite

aten = torch.ops.aten
Tensor = torch.Tensor


def _rounds_a_scalar(a: Any, b: Any) -> bool:
    """Whether a host may round one operand to bf16 or fp16 before the operation.

    Eager PyTorch keeps a Python number, or a 0-dim tensor of another dtype, in fp32; Inductor does not.
    """
    if torch.result_type(a, b) not in (torch.bfloat16, torch.float16):
        return False
    return not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype != b.dtype


def _on_cuda(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _wide(value: Any) -> Any:
    return opmath(value) if isinstance(value, Tensor) else value


def _in_opmath(op: Any) -> Any:
    """Build for a binary op: rounds once, after the operation."""

    def build(a: Any, b: Any, **options: Any) -> Any:
        if not _rounds_a_scalar(a, b):
            return NotImplemented
        return op(_wide(a), _wide(b), **options).to(torch.result_type(a, b))

    return build


_mul = rewrite(aten.mul.Tensor, aten.mul.Scalar)(either(multiply, _in_opmath(torch.mul)))


@rewrite(aten.div.Tensor, aten.div.Scalar)
def _div(a: Any, b: Any) -> Any:
    if is_complex(a, b):
        return divide(a, b)
    if _on_cuda(a) and not _on_cuda(b):
        # By a number, eager PyTorch multiplies with its reciprocal there.
        found = torch.result_type(a, b)
        dtype = found if found.is_floating_point else torch.get_default_dtype()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        divisor = (
            b.to(a.device, wide) if isinstance(b, Tensor) else torch.full((), b, dtype=wide, device=a.device)
        )
        return (a.to(wide) / divisor).to(dtype)
    return _in_opmath(torch.div)(a, b)


_fmod = rewrite(aten.fmod.Scalar)(_in_opmath(torch.fmod))


@rewrite(aten.add.Tensor, aten.add.Scalar)
def _add(a: Any, b: Any, alpha: Any = 1) -> Any:
    if is_complex(a, b):
        return add(a, b, alpha)
    if alpha == 1:
        return _in_opmath(torch.add)(a, b)
    return (_wide(a) + _wide(b) * alpha).to(torch.result_type(a, b))


@rewrite(aten.sub.Tensor, aten.sub.Scalar)
def _sub(a: Any, b: Any, alpha: Any = 1) -> Any:
    if is_complex(a, b):
        return subtract(a, b, alpha)
    if alpha == 1:
        return _in_opmath(torch.sub)(a, b)
    return (_wide(a) - _wide(b) * alpha).to(torch.result_type(a, b))


@rewrite(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(a: Tensor, b: Any, alpha: Any = 1) -> Any:
    if not torch.result_type(a, b).is_floating_point:
        return NotImplemented
    taken = _wide(a) if alpha == 1 else _wide(a) * alpha
    # `b - taken` with a number b would be this op again; adding the negated value rounds the same.
    return (-taken + _wide(b)).to(torch.result_type(a, b))


def _wide_tensors(a: Any, b: Any) -> tuple[torch.dtype, Tensor, Tensor]:
    """The result dtype of a binary op and both operands in the dtype it computes in."""
    dtype = torch.result_type(a, b)
    device = a.device if isinstance(a, Tensor) else b.device
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return dtype, torch.as_tensor(a, device=device).to(wide), torch.as_tensor(b, device=device).to(wide)


@rewrite(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div_mode(a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if not torch.result_type(a, b).is_floating_point:
        return NotImplemented
    if rounding_mode == "floor":
        return _floor_divide(a, b)
    dtype, wide_a, wide_b = _wide_tensors(a, b)
    quotient = wide_a / wide_b
    return (quotient.trunc() if rounding_mode == "trunc" else quotient).to(dtype)


def _floor_divide(a: Any, b: Any) -> Tensor:
    # Python's definition, which eager PyTorch follows: the quotient of what fmod leaves over, made whole.
    dtype, x, y = _wide_tensors(a, b)
    rest = torch.fmod(x, y)
    quotient = (x - rest) / y
    quotient = torch.where((rest != 0) & ((rest < 0) != (y < 0)), quotient - 1, quotient)
    whole = quotient.floor()
    whole = torch.where(quotient - whole > 0.5, whole + 1, whole)
    whole = torch.where(quotient == 0, torch.zeros_like(x).copysign(x / y), whole)
    return torch.where(y == 0, x / y, whole).to(dtype)


@rewrite(aten.floor_divide.default, aten.floor_divide.Scalar)
def _floor_divide_op(a: Any, b: Any) -> Any:
    return _floor_divide(a, b) if torch.result_type(a, b).is_floating_point else NotImplemented


@rewrite(aten.remainder.Tensor, aten.remainder.Scalar, aten.remainder.Scalar_Tensor)
def _remainder(a: Any, b: Any) -> Any:
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point:
        return NotImplemented
    _, dividend, divisor = _wide_tensors(a, b)
    rest = torch.fmod(dividend, divisor)
    # The sign of the divisor, as Python's % has it.
    return torch.where((rest != 0) & ((rest < 0) != (divisor < 0)), rest + divisor, rest).to(dtype)


@rewrite(aten.addcmul.default)
def _addcmul(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Any:
    product = opmath(a) * opmath(b)
    return (opmath(x) + (product if value == 1 else product * value)).to(x.dtype)


@rewrite(aten.addcdiv.default)
def _addcdiv(x: Tensor, a: Tensor, b: Tensor, *, value: Any = 1) -> Any:
    quotient = opmath(a) / opmath(b)
    return (opmath(x) + (quotient if value == 1 else quotient * value)).to(x.dtype)


@rewrite(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(start: Tensor, end: Tensor, weight: Any) -> Any:
    a, b = opmath(start), opmath(end)
    w = opmath(weight) if isinstance(weight, Tensor) else torch.full_like(a, weight)
    # From the nearer end, so that weight 0 and 1 give the ends exactly.
    return torch.where(w.abs() < 0.5, a + w * (b - a), b - (b - a) * (1 - w)).to(start.dtype)


@rewrite(aten.asinh.default)
def _asinh(x: Tensor) -> Any:
    if not x.dtype.is_floating_point:
        return NotImplemented
    a = opmath(x).abs()
    small = (a + a * a / (1 + (1 + a * a).sqrt())).log1p()
    large = a.log() + math.log(2)
    return torch.where(a < 2.0**28, small, large).copysign(opmath(x)).to(x.dtype)


@rewrite(aten.glu.default)
def _glu(x: Tensor, dim: int = -1) -> Any:
    a, b = opmath(x).chunk(2, dim)
    return (a * b.sigmoid()).to(x.dtype)


@rewrite(aten.pow.Tensor_Scalar)
def _pow(x: Tensor, exponent: Any) -> Any:
    if not isinstance(exponent, int | float) or not (x.dtype.is_floating_point or is_complex(x)):
        return NotImplemented
    special = {
        0: torch.ones_like,
        1: torch.clone,
        2: lambda t: t * t,
        3: lambda t: t * t * t,
        0.5: torch.sqrt,
        -1: lambda t: 1 / t,
        -0.5: lambda t: 1 / t.sqrt(),
        -2: lambda t: 1 / (t * t),
    }
    if exponent in special and not (is_complex(x) and exponent in (0.5, -0.5)):
        return special[exponent](opmath(x)).to(x.dtype)
    if is_complex(x):
        return NotImplemented
    # A tensor exponent keeps every other power in the one canonical function.
    wide = opmath(x)
    return aten.pow.Tensor_Tensor(wide, torch.full((), exponent, dtype=wide.dtype, device=x.device)).to(
        x.dtype
    )


@rewrite(aten.pow.Scalar)
def _pow_base(base: Any, x: Tensor) -> Any:
    if not torch.result_type(base, x).is_floating_point:
        return NotImplemented
    dtype, wide_base, wide = _wide_tensors(base, x)
    return aten.pow.Tensor_Tensor(wide_base.expand_as(wide), wide).to(dtype)


@rewrite(aten.round.decimals)
def _round(x: Tensor, *, decimals: int) -> Any:
    if not is_floating(x):
        return NotImplemented
    if decimals == 0:
        return x.round()
    # A quotient, as in eager PyTorch: Inductor multiplies with the power's reciprocal, which is rounded.
    wide = opmath(x)
    power = torch.full((), 10.0 ** abs(decimals), dtype=wide.dtype, device=x.device)
    rounded = (wide * power).round() / power if decimals > 0 else (wide / power).round() * power
    return rounded.to(x.dtype)


@rewrite(aten.frac.default)
def _frac(x: Tensor) -> Any:
    # As in eager PyTorch, where the part of -0 is +0: before torch 2.13 graphs have -0, by a sign that is 0.
    return x - x.trunc() if is_floating(x) else NotImplemented


@rewrite(aten.softshrink.default)
def _softshrink(x: Tensor, lambd: Any = 0.5) -> Any:
    # The zero has the sign of x. Eager PyTorch gives +0 in vectors, and either zero in what is left of a row.
    wide = opmath(x)
    inner = torch.where(wide < -lambd, wide + lambd, wide * 0)
    return torch.where(wide > lambd, wide - lambd, inner).to(x.dtype)


@rewrite(aten.hardshrink_backward.default)
def _hardshrink_backward(grad: Tensor, x: Tensor, lambd: Any) -> Any:
    return torch.where((x >= -lambd) & (x <= lambd), 0, grad)


# Comparisons instead of the hosts' maxima, which disagree about the sign of a zero. NaN propagates.


@rewrite(aten.maximum.default)
def _maximum(a: Tensor, b: Tensor) -> Any:
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point:
        return NotImplemented
    a, b = a.to(dtype), b.to(dtype)
    return torch.where((a > b) | a.isnan(), a, b)


@rewrite(aten.minimum.default)
def _minimum(a: Tensor, b: Tensor) -> Any:
    dtype = torch.result_type(a, b)
    if not dtype.is_floating_point:
        return NotImplemented
    a, b = a.to(dtype), b.to(dtype)
    return torch.where((a < b) | a.isnan(), a, b)


@rewrite(aten.relu.default)
def _relu(x: Tensor) -> Any:
    return torch.where(x <= 0, 0, x) if is_floating(x) else NotImplemented


@rewrite(aten.clamp.default)
def _clamp(x: Tensor, min: Any = None, max: Any = None) -> Any:
    if not is_floating(x):
        return NotImplemented
    wide = opmath(x)
    for bound, low in ((min, True), (max, False)):
        if bound is not None:
            wide = torch.where(wide < bound if low else wide > bound, bound, wide)
    return wide.to(x.dtype)


@rewrite(aten.clamp_min.default)
def _clamp_min(x: Tensor, min: Any) -> Any:
    return aten.clamp.default(x, min, None) if is_floating(x) else NotImplemented


@rewrite(aten.clamp_max.default)
def _clamp_max(x: Tensor, max: Any) -> Any:
    return aten.clamp.default(x, None, max) if is_floating(x) else NotImplemented


@rewrite(aten.clamp_min.Tensor)
def _clamp_min_tensor(x: Tensor, min: Tensor) -> Any:
    return aten.maximum.default(x, min.to(x.dtype)) if is_floating(x) else NotImplemented


@rewrite(aten.clamp_max.Tensor)
def _clamp_max_tensor(x: Tensor, max: Tensor) -> Any:
    return aten.minimum.default(x, max.to(x.dtype)) if is_floating(x) else NotImplemented


@rewrite(aten.clamp.Tensor)
def _clamp_tensor(x: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Any:
    if not is_floating(x):
        return NotImplemented
    x = x if min is None else aten.maximum.default(x, min.to(x.dtype))
    return x if max is None else aten.minimum.default(x, max.to(x.dtype))


REWRITES = (
    *_mul, *_div, *_div_mode, *_floor_divide_op, *_fmod, *_add, *_sub, *_rsub, *_remainder,
    *_addcmul, *_addcdiv, *_lerp, *_glu, *_asinh, *_pow, *_pow_base, *_round, *_frac, *_softshrink,
    *_hardshrink_backward, *_maximum, *_minimum, *_relu, *_clamp, *_clamp_min, *_clamp_max, *_clamp_tensor,
    *_clamp_min_tensor, *_clamp_max_tensor,
)  # fmt: skip
