"""What the rows of attention compute in Triton, whatever the tile: exponentials, folds, merges."""

import triton
import triton.language as tl

from bi_compile.numerics import (
    ATTENTION_GPU_FIRST_SPLITS,
    ATTENTION_GPU_KV_SPLIT,
    ATTENTION_KV_BLOCK,
)
from bi_compile.templates.gpu import functions
from bi_compile.templates.gpu.pieces import halves

BLOCK = tl.constexpr(ATTENTION_KV_BLOCK)
SPLIT = tl.constexpr(ATTENTION_GPU_KV_SPLIT)
FIRST_SPLITS = tl.constexpr(ATTENTION_GPU_FIRST_SPLITS)
BOOLEAN = tl.constexpr(1)
ADDITIVE = tl.constexpr(2)
"""Kinds of a mask; 0 is none."""

# The polynomials of exp.h.
_LOG2_E = tl.constexpr(float.fromhex("0x1.715476p+0"))
_SHIFT = tl.constexpr(1.5 * 2**23 + 127)
_LN2_HIGH = tl.constexpr(float.fromhex("-0x1.62e43p-1"))
_LN2_LOW = tl.constexpr(float.fromhex("0x1.05c61p-29"))
_Q6 = tl.constexpr(float.fromhex("0x1.6a4ce4p-10"))
_Q5 = tl.constexpr(float.fromhex("0x1.123988p-7"))
_Q4 = tl.constexpr(float.fromhex("0x1.5558b0p-5"))
_Q3 = tl.constexpr(float.fromhex("0x1.555492p-3"))
_Q2 = tl.constexpr(float.fromhex("0x1.fffffcp-2"))
_T4 = tl.constexpr(float.fromhex("-0x1.b40c10p-8"))
_T3 = tl.constexpr(float.fromhex("0x1.5d01c4p-6"))
_T2 = tl.constexpr(float.fromhex("-0x1.b98c6ep-5"))
_T1 = tl.constexpr(float.fromhex("0x1.110f2ap-3"))
_T0 = tl.constexpr(float.fromhex("-0x1.555552p-2"))


@triton.jit
def exp(x):
    """exp of x <= 0 (or hardly more) or NaN, operation for operation that of exp.h."""
    shifted = tl.fma(x, _LOG2_E, _SHIFT)
    n = shifted - _SHIFT
    r = tl.fma(n, _LN2_LOW, tl.fma(n, _LN2_HIGH, x))
    q = tl.fma(r, _Q6, _Q5)
    q = tl.fma(q, r, _Q4)
    q = tl.fma(q, r, _Q3)
    q = tl.fma(q, r, _Q2)
    q = tl.fma(q, r, 1.0)
    q = tl.fma(q, r, 1.0)
    power = (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -87.0, 0.0, q * power)


@triton.jit
def power(x, BINARY: tl.constexpr):
    """exp of x. BINARY: 2 to the power of x, by the instruction. Either is exactly 1 at 0."""
    if BINARY:
        return tl.exp2(x)
    else:
        return exp(x)


@triton.jit
def ratio(t):
    """(1 - t) / (1 + t), rounded once, for t from 0 to 0.37, and not for others.

    `functions.divide` would call a subroutine for quotients that this cannot have, and keep registers for it.
    For every t these steps round the inverse and the quotient correctly, whichever inverse within 3 units in
    the last place they begin with: all of them were tried. A device gives one within 2.
    """
    below = 1.0 + t
    inverse = 1.0 / below
    inverse = tl.fma(tl.fma(-below, inverse, 1.0), inverse, inverse)
    inverse = tl.fma(tl.fma(-below, inverse, 1.0), inverse, inverse)
    return functions.divide_by(1.0 - t, below, inverse)


@triton.jit
def tanh(x):
    """tanh in fp32, operation for operation that of exp.h."""
    z = x * x
    p = tl.fma(z, _T4, _T3)
    p = tl.fma(p, z, _T2)
    p = tl.fma(p, z, _T1)
    p = tl.fma(p, z, _T0)
    # One number for both, to save registers: what lies near 0 is no larger than its argument.
    x = tl.where(tl.abs(x) > 0.5, x, tl.fma(x * z, p, x))
    t = exp(tl.abs(x) * -2.0)
    far = ratio(t)
    return tl.where(tl.abs(x) > 0.5, tl.where(x < 0, -far, far), x)


@triton.jit
def split_begin(split):
    """How many keys lie before this split."""
    short = split * (SPLIT // 2)
    return tl.where(split < FIRST_SPLITS, short, (split - FIRST_SPLITS // 2) * SPLIT)


@triton.jit
def starts_split(key):
    """Whether this key, counted from the first, is the first of a split."""
    return (key % SPLIT == 0) | ((key % (SPLIT // 2) == 0) & (key < FIRST_SPLITS * (SPLIT // 2)))


@triton.jit
def finite(maximum):
    """What is subtracted from scores: 0 for a row that has seen no key."""
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def row_sum(p):
    """[M, lanes] -> [M]: lane j takes in lane j + half, then by half as many."""
    ROWS: tl.constexpr = p.shape[0]
    LANES: tl.constexpr = p.shape[1]
    if LANES == 1:
        return tl.reshape(p, (ROWS,))
    else:
        return row_sum(tl.sum(tl.reshape(p, (ROWS, 2, LANES // 2)), 1))


@triton.jit
def unwanted(p, counts, v):
    """What non-finite values add to a sum [M, D]: a weight of 0 keeps out those of masked keys alone.

    counts [M, BLOCK]: whether a key takes part in a row.
    """
    nans = tl.dot(counts.to(tl.bfloat16), (v != v).to(tl.bfloat16))
    zero = (counts & (p == 0)).to(tl.bfloat16)
    nans = tl.dot(zero, (tl.abs(v.to(tl.float32)) == float("inf")).to(tl.bfloat16), nans)
    positive = (counts & (p > 0)).to(tl.bfloat16)
    ups = tl.dot(positive, (v == float("inf")).to(tl.bfloat16))
    downs = tl.dot(positive, (v == -float("inf")).to(tl.bfloat16))
    found = tl.where(ups > 0, float("inf"), tl.where(downs > 0, -float("inf"), 0.0))
    return tl.where((nans > 0) | ((ups > 0) & (downs > 0)), float("nan"), found)


@triton.jit
def factors(maximum, other_maximum, BINARY: tl.constexpr):
    """The maximum of two splits, and what each is multiplied by."""
    now = tl.maximum(maximum, other_maximum)
    base = finite(now)
    return now, power(maximum - base, BINARY), power(other_maximum - base, BINARY)


@triton.jit
def added(out, a, other_out, c):
    """The sums of two splits [M, D], each multiplied by its factor [M]."""
    return tl.fma(out, tl.broadcast_to(a[:, None], out.shape), other_out * c[:, None])


@triton.jit
def zeros_of(zero, M: tl.constexpr, DIMS: tl.constexpr, REST: tl.constexpr):
    """Zeros [M, DIMS] and, where REST, [M, REST] beside them. zero: as a number."""
    near = tl.full((M, DIMS), zero, tl.float32)
    if REST:
        return near, tl.full((M, REST), zero, tl.float32)
    else:
        return (near,)


@triton.jit
def added_tiles(out, a, other_out, c):
    """`added`, for tiles beside each other."""
    near = added(out[0], a, other_out[0], c)
    if len(out) > 1:
        return near, added(out[1], a, other_out[1], c)
    else:
        return (near,)


@triton.jit
def where_tiles(rows, out, other_out):
    """`tl.where` of rows [M], for tiles beside each other."""
    near = tl.where(rows[:, None], out[0], other_out[0])
    if len(out) > 1:
        return near, tl.where(rows[:, None], out[1], other_out[1])
    else:
        return (near,)


@triton.jit
def merge(
    maximum, total, out, seen, other_maximum, other_total, other_out, other_seen,
    BINARY: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """Two splits, in this order; their sums in a tile or in two beside each other.

    CAREFUL: what is weighted by 0 leaves nothing where only masked keys were met.
    """
    now, a, c = factors(maximum, other_maximum, BINARY)
    if CAREFUL:
        out = [tl.where(((a == 0) & (seen == 0))[:, None], 0.0, x) for x in out]
        other_out = [tl.where(((c == 0) & (other_seen == 0))[:, None], 0.0, x) for x in other_out]
        seen = tl.maximum(seen, other_seen)
    return now, tl.fma(total, a, other_total * c), added_tiles(out, a, other_out, c), seen


@triton.jit
def _store_columns(
    out_rows, first, out, inverse, row_there, SIZE: tl.constexpr, COLUMNS: tl.constexpr, FINITE: tl.constexpr
):  # fmt: skip
    if out.shape[1] > COLUMNS:
        near, far = halves(out)
        _store_columns(out_rows, first, near, inverse, row_there, SIZE, COLUMNS, FINITE)
        first += near.shape[1]
        _store_columns(out_rows, first, far, inverse, row_there, SIZE, COLUMNS, FINITE)
    else:
        column = first + tl.arange(0, out.shape[1])
        # Adding 0 turns -0 into +0: a row would otherwise tell keys of weight 0 from no keys.
        result = out * inverse[:, None] + 0.0
        if FINITE:
            result = result.to(out_rows.dtype.element_ty)
        else:
            result = functions.rounded(result, out_rows.dtype.element_ty)
        there = row_there[:, None] & (column < SIZE)[None, :]
        tl.store(out_rows[:, None] + column[None, :], result, mask=there)


@triton.jit
def store_rows(
    out_rows, lse_at, maximum, total, first, out, row_there,
    SIZE: tl.constexpr, COLUMNS: tl.constexpr, BINARY: tl.constexpr, FINITE: tl.constexpr,
):  # fmt: skip
    """The output from column `first` of SIZE on, COLUMNS at a time, and the logsumexp of a tile.

    out: a tile [M, D], or two beside each other. out_rows, lse_at [M]: where they are stored. FINITE: a tile
    that has others is written again.
    """
    no_key = (total == 0) & (maximum == -float("inf"))
    one = tl.full(total.shape, 1.0, tl.float32)
    inverse = tl.where(no_key, 0.0, functions.divide(one, total))
    _store_columns(out_rows, first, out[0], inverse, row_there, SIZE, COLUMNS, FINITE)
    if len(out) > 1:
        first += out[0].shape[1]
        _store_columns(out_rows, first, out[1], inverse, row_there, SIZE, COLUMNS, FINITE)
    unit = 0.6931471805599453 if BINARY else 1.0
    lse = tl.fma(maximum, tl.zeros_like(maximum) + unit, functions.log(total))
    lse = tl.where(no_key, -float("inf"), lse)
    tl.store(lse_at, functions.rounded(lse, tl.float32), mask=row_there)
