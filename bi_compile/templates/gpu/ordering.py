"""Floats as integers that are ordered alike: -0 below +0, and NaN beyond all."""

import triton
import triton.language as tl


@triton.jit
def ordered(x, KIND: tl.constexpr):
    """x as an integer; a NaN is beyond all others in the direction of KIND, "max" or "min"."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
        nan = tl.full([], 0x7FFFFFFFFFFFFFFF, tl.int64)
    else:
        bits = x.to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        nan = tl.full([], 0x7FFFFFFF, tl.int32)
    if KIND == "min":
        nan = -nan - 1
    return tl.where(x != x, nan, key)


@triton.jit
def unordered(key, dtype: tl.constexpr):
    """The float that `ordered` made an integer."""
    if dtype == tl.float64:
        return (key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
    else:
        return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
