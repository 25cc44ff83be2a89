"""Functions of single elements, for Triton kernels: one definition each, whatever they are fused with.

Division and square roots are correctly rounded. exp, log and pow are CUDA's libdevice, which Inductor's
generated kernels call too, so a fused softmax has the bits of its operations run one by one. Triton's
interpreter has no libdevice; there numpy's functions stand in.
"""

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def exp(x):
    if _INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def log(x):
    if _INTERPRETED:
        return tl.log(x)
    else:
        return libdevice.log(x)


@triton.jit
def log1p(x):
    if _INTERPRETED:
        return tl.log(1.0 + x)
    else:
        return libdevice.log1p(x)


@triton.jit
def pow(x, y):
    if _INTERPRETED:
        return tl.exp(y * tl.log(x))
    else:
        return libdevice.pow(x, y)


@triton.jit
def divide(x, y):
    """x / y, rounded once."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


LEAST_DIVIDED = tl.constexpr(2.0**-76)


@triton.jit
def divide_by(x, y, inverse):
    """x / y, rounded once, given inverse = 1 / y, rounded once, in fp32: for many x and one y.

    Holds for x of 0 or at least LEAST_DIVIDED and y from 1 to 2**40 or NaN: no remainder is rounded then, and
    by Markstein's theorem the second correction rounds the quotient correctly.
    """
    q = x * inverse
    q = tl.fma(tl.fma(-q, y, x), inverse, q)
    return tl.fma(tl.fma(-q, y, x), inverse, q)


@triton.jit
def sqrt(x):
    """The root of x, rounded once."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def widened(x):
    """x in the dtype of the computation: float64 stays, all else becomes float32."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in `dtype`, every NaN the one quiet NaN: conversions of the hardware give NaNs of other payloads."""
    y = x.to(dtype)
    if dtype == tl.float64:
        return tl.where(x != x, tl.full([], 0x7FF8000000000000, tl.int64).to(tl.float64, bitcast=True), y)
    elif dtype == tl.float32:
        return tl.where(x != x, tl.full([], 0x7FC00000, tl.int32).to(tl.float32, bitcast=True), y)
    elif dtype == tl.float16:
        return tl.where(x != x, tl.full([], 0x7E00, tl.int16).to(tl.float16, bitcast=True), y)
    else:
        return tl.where(x != x, tl.full([], 0x7FC0, tl.int16).to(tl.bfloat16, bitcast=True), y)


@triton.jit
def rounded_in_pairs(x, dtype: tl.constexpr):
    """`rounded` in fewer instructions, for elements side by side: of others compiling takes minutes."""
    if dtype == tl.bfloat16:
        # Of a NaN a conversion makes 0x7FFF, which no other number is above as an integer.
        nan = tl.full([], 0x7FC0, tl.int16)
        return tl.minimum(x.to(dtype).to(tl.int16, bitcast=True), nan).to(dtype, bitcast=True)
    else:
        return rounded(x, dtype)
