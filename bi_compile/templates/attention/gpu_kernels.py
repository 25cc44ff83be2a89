"""Attention in Triton: splits of the keys walked in sequence or in parallel, one tree for every row.

A tile holds BLOCK_M rows of the query heads that share one kv head: row r is query r // GROUP of head r %
GROUP. Neither the tile nor the number of warps enters a row's bits: products are chains over their inner
dim whatever the tile (docs/gpu-order.md), and the sum of a block's weights is an explicit fold.
"""

import triton
import triton.language as tl

from bi_compile.numerics import ATTENTION_GPU_KV_SPLIT, ATTENTION_KV_BLOCK
from bi_compile.templates.gpu import functions

BLOCK = tl.constexpr(ATTENTION_KV_BLOCK)
SPLIT = tl.constexpr(ATTENTION_GPU_KV_SPLIT)
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
    """exp of x <= 0 or NaN, operation for operation that of exp.h."""
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
    """exp of x <= 0 or NaN. BINARY: 2 to the power of x, by the instruction; exactly 1 at 0, too."""
    if BINARY:
        return tl.exp2(x)
    else:
        return exp(x)


@triton.jit
def tanh(x):
    """tanh in fp32, operation for operation that of exp.h."""
    size, z = tl.abs(x), x * x
    p = tl.fma(z, _T4, _T3)
    p = tl.fma(p, z, _T2)
    p = tl.fma(p, z, _T1)
    p = tl.fma(p, z, _T0)
    t = exp(size * -2.0)
    far = functions.divide(1.0 - t, 1.0 + t)
    return tl.where(size > 0.5, tl.where(x < 0, -far, far), tl.fma(x * z, p, x))


@triton.jit
def _finite(maximum):
    """What is subtracted from scores: 0 for a row that has seen no key."""
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def _row_sum(p):
    """[M, lanes] -> [M]: lane j takes in lane j + half, then by half as many."""
    ROWS: tl.constexpr = p.shape[0]
    LANES: tl.constexpr = p.shape[1]
    if LANES == 1:
        return tl.reshape(p, (ROWS,))
    else:
        return _row_sum(tl.sum(tl.reshape(p, (ROWS, 2, LANES // 2)), 1))


@triton.jit
def _unwanted(p, counts, v, out):
    """What non-finite values add to out, met or not: a weight of 0 keeps out those of masked keys alone.

    counts [M, BLOCK]: whether a key takes part in a row.
    """
    positive = (counts & (p > 0)).to(tl.bfloat16)
    zero = (counts & (p == 0)).to(tl.bfloat16)
    above, below = (v == float("inf")).to(tl.bfloat16), (v == -float("inf")).to(tl.bfloat16)
    nans = tl.dot(counts.to(tl.bfloat16), (v != v).to(tl.bfloat16)) + tl.dot(zero, above + below)
    ups, downs = tl.dot(positive, above), tl.dot(positive, below)
    found = tl.where(ups > 0, float("inf"), tl.where(downs > 0, -float("inf"), 0.0))
    return out + tl.where((nans > 0) | ((ups > 0) & (downs > 0)), float("nan"), found)


@triton.jit
def _walk(
    q, keys_at, values_at, mask_rows, maximum, total, out, seen, begin, end, row_there, query, keys,
    k_stride, v_stride, mask_stride, scale, softcap, lowest, key_dims, value_dims,
    BINARY: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    EDGE: tl.constexpr, EVEN: tl.constexpr,
    CAREFUL: tl.constexpr,
):  # fmt: skip
    """The blocks of keys from begin to end, taken into a split's state.

    EDGE: blocks may reach beyond the keys or a row's own. EVEN: the head sizes fill the tile. CAREFUL:
    values may be non-finite. seen [M]: whether a row has met a key that is not masked; kept where CAREFUL
    alone.
    """
    key = tl.arange(0, BLOCK)
    for first in range(begin, end, BLOCK):
        at = tl.cast(first, tl.int64)
        # Not a tile of addresses that is moved from block to block: it would fill the registers.
        mask_at = mask_rows[:, None] + (at + key)[None, :] * mask_stride
        there = first + key < keys
        k_there = key_dims[:, None] & there[None, :]
        v_there = there[:, None] & value_dims[None, :]
        if EDGE or not EVEN:
            k = tl.load(keys_at + at * k_stride, mask=k_there, other=0.0)
        else:
            k = tl.load(keys_at + at * k_stride)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if CAPPED:
            scores = tanh(functions.divide(scores, tl.zeros_like(scores) + softcap)) * softcap
            if BINARY:
                scores = scores * _LOG2_E
        visible = row_there[:, None] & there[None, :]
        if CAUSAL:
            visible = visible & (first + key[None, :] <= query[:, None])
        attended = visible
        if MASK == BOOLEAN:
            attended = visible & tl.load(mask_at, mask=visible, other=0) != 0
            scores = tl.where(attended, scores, -float("inf"))
        elif MASK == ADDITIVE:
            add = tl.load(mask_at, mask=visible, other=-float("inf")).to(tl.float32)
            attended = visible & (add > lowest)
            # Not a number of binary digits where it is the lowest: it would overflow.
            added = scores + (add * _LOG2_E if BINARY else add)
            scores = tl.where(add <= lowest, add, added)
        if EDGE:
            scores = tl.where(visible, scores, -float("inf"))
        now = tl.maximum(maximum, tl.max(scores, 1))
        base = _finite(now)
        alpha = power(maximum - base, BINARY)
        p = power(scores - base[:, None], BINARY)
        maximum = now
        total = tl.fma(total, alpha, _row_sum(p))
        if EDGE or not EVEN:
            v = tl.load(values_at + at * v_stride, mask=v_there, other=0.0)
        else:
            v = tl.load(values_at + at * v_stride)
        if CAREFUL:
            out = tl.where(((alpha == 0) & (seen == 0))[:, None], 0.0, out * alpha[:, None])
            finite = tl.abs(v.to(tl.float32)) < float("inf")
            met = tl.where(finite, v, tl.zeros_like(v))
            out = tl.dot(p.to(v.dtype), met, out, input_precision="ieee")
            out = _unwanted(p, attended | (p != 0), v, out)
            seen = tl.maximum(seen, tl.max(attended.to(tl.int32), 1))
        else:
            out = tl.dot(p.to(v.dtype), v, out * alpha[:, None], input_precision="ieee")
    return maximum, total, out, seen


@triton.jit
def _merge(
    maximum, total, out, seen, other_maximum, other_total, other_out, other_seen, BINARY: tl.constexpr
):
    """Two splits, in this order. What is weighted by 0 leaves nothing where only masked keys were met."""
    now = tl.maximum(maximum, other_maximum)
    base = _finite(now)
    a, c = power(maximum - base, BINARY), power(other_maximum - base, BINARY)
    left = tl.where(((a == 0) & (seen == 0))[:, None], 0.0, out)
    right = tl.where(((c == 0) & (other_seen == 0))[:, None], 0.0, other_out)
    out = tl.fma(left, tl.broadcast_to(a[:, None], out.shape), right * c[:, None])
    return now, tl.fma(total, a, other_total * c), out, tl.maximum(seen, other_seen)


@triton.jit
def _store(out_at, lse_at, maximum, total, out, row_there, value_dims, BINARY: tl.constexpr):
    inverse = tl.where(total == 0, 0.0, functions.divide(tl.full(total.shape, 1.0, tl.float32), total))
    # Adding 0 turns -0 into +0: a row would otherwise tell keys of weight 0 from no keys.
    result = functions.rounded(out * inverse[:, None] + 0.0, out_at.dtype.element_ty)
    tl.store(out_at, result, mask=row_there[:, None] & value_dims[None, :])
    natural = maximum.to(tl.float64)
    if BINARY:
        natural = natural * 0.6931471805599453
    wide = natural + functions.log(total.to(tl.float64))
    lse = tl.where(total == 0, -float("inf"), wide.to(tl.float32))
    tl.store(lse_at, functions.rounded(lse, tl.float32), mask=row_there)


@triton.jit(do_not_specialize=["queries", "keys", "heads", "kv_heads", "splits", "flagged_tiles"])
def attend(
    q, k, v, mask, out, lse, parts, states, flags,
    queries, keys, heads, kv_heads, splits, flagged_tiles, scale, softcap, lowest,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_row, k_dim, v_batch, v_head, v_row, v_dim,
    mask_batch, mask_head, mask_row, mask_key,
    SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, DIMS: tl.constexpr, VALUE_DIMS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BINARY: tl.constexpr, CAPPED: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr, PARALLEL: tl.constexpr,
    ONE_SPLIT: tl.constexpr, FLAGGED: tl.constexpr, FLAGGED_M: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """One tile over all splits or, PARALLEL, over one of them, whose state goes to `parts` and `states`.

    FLAGGED: leaves in flags [z, y, flagged_tiles] whether the tile holds anything non-finite. CAREFUL: does
    only tiles of so flagged ones, of FLAGGED_M rows, anew.

    parts [batch * kv_heads, splits, rows, VALUE_SIZE], states [3, batch * kv_heads, splits, rows]: maximum,
    sum and whether a key was met that is not masked.
    """
    head = tl.program_id(1)
    batch = (head // kv_heads).to(tl.int64)
    kv_head = head % kv_heads
    # The tiles with the most keys first.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    flag = (tl.program_id(2) * tl.num_programs(1) + head) * flagged_tiles + tile * BLOCK_M // FLAGGED_M
    if CAREFUL and tl.load(flags + flag) == 0:
        return
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = queries * GROUP
    row_there = row < rows
    query = row // GROUP
    own_head = kv_head * GROUP + row % GROUP
    dim, value_dim = tl.arange(0, DIMS), tl.arange(0, VALUE_DIMS)
    key = tl.arange(0, BLOCK)
    key_dims, value_dims = dim < SIZE, value_dim < VALUE_SIZE
    q_at = (
        q + batch * q_batch + (own_head * q_head + query.to(tl.int64) * q_row)[:, None] + dim[None, :] * q_dim
    )
    tile_q = tl.load(q_at, mask=row_there[:, None] & key_dims[None, :], other=0.0)
    keys_at = (
        k + batch * k_batch + kv_head.to(tl.int64) * k_head + dim[:, None] * k_dim + key[None, :] * k_row
    )
    values_at = v + batch * v_batch + kv_head.to(tl.int64) * v_head
    values_at = values_at + key[:, None] * v_row + value_dim[None, :] * v_dim
    mask_rows = mask + batch * mask_batch + own_head * mask_head + query.to(tl.int64) * mask_row

    # Keys that some row of the tile attends to, and those that all do.
    last = keys
    whole = keys
    if CAUSAL:
        last = tl.minimum(keys, tl.minimum(queries, (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1))
        whole = tl.minimum(keys, tile * BLOCK_M // GROUP + 1)
    EVEN: tl.constexpr = SIZE == DIMS and VALUE_SIZE == VALUE_DIMS
    total_maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total_sum = tl.zeros((BLOCK_M,), tl.float32)
    total_out = tl.zeros((BLOCK_M, VALUE_DIMS), tl.float32)
    total_seen = tl.zeros((BLOCK_M,), tl.int32)
    first_split = tl.program_id(2) if PARALLEL else 0
    last_split = first_split + 1 if PARALLEL or ONE_SPLIT else tl.cdiv(last, SPLIT)
    for split in range(first_split, last_split):
        begin = split * SPLIT
        end = tl.minimum(last, begin + SPLIT)
        inner = tl.maximum(begin, tl.minimum(end, whole // BLOCK * BLOCK))
        maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        part = tl.zeros((BLOCK_M, VALUE_DIMS), tl.float32)
        seen = tl.zeros((BLOCK_M,), tl.int32)
        if CAREFUL:
            maximum, total, part, seen = _walk(
                tile_q, keys_at, values_at, mask_rows, maximum, total, part, seen, begin, end, row_there,
                query,
                keys, k_row, v_row, mask_key, scale, softcap, lowest, key_dims, value_dims, BINARY, CAPPED,
                MASK,
                CAUSAL, True, EVEN, True,
            )  # fmt: skip
        else:
            maximum, total, part, seen = _walk(
                tile_q, keys_at, values_at, mask_rows, maximum, total, part, seen, begin, inner, row_there,
                query,
                keys, k_row, v_row, mask_key, scale, softcap, lowest, key_dims, value_dims, BINARY, CAPPED,
                MASK,
                False, False, EVEN, False,
            )  # fmt: skip
            maximum, total, part, seen = _walk(
                tile_q, keys_at, values_at, mask_rows, maximum, total, part, seen, inner, end, row_there,
                query,
                keys, k_row, v_row, mask_key, scale, softcap, lowest, key_dims, value_dims, BINARY, CAPPED,
                MASK,
                CAUSAL, True, EVEN, False,
            )  # fmt: skip
        if PARALLEL or ONE_SPLIT:
            # A merge with nothing changes nothing.
            total_maximum, total_sum, total_out, total_seen = maximum, total, part, seen
        else:
            total_maximum, total_sum, total_out, total_seen = _merge(
                total_maximum, total_sum, total_out, total_seen, maximum, total, part, seen, BINARY
            )
    if FLAGGED and not CAREFUL:
        # A weight of 0 may have met a NaN or an infinity; the sums of an infinity too far are NaN by now.
        strange = tl.max(tl.max((tl.abs(total_out) < float("inf")).to(tl.int32) ^ 1, 1), 0)
        tl.store(flags + flag, strange)
    if PARALLEL:
        place = (head.to(tl.int64) * splits + first_split) * rows + row
        size = tl.num_programs(1).to(tl.int64) * splits * rows
        tl.store(states + place, total_maximum, mask=row_there)
        tl.store(states + size + place, total_sum, mask=row_there)
        tl.store(states + 2 * size + place, total_seen.to(tl.float32), mask=row_there)
        parts_at = parts + place[:, None] * VALUE_SIZE + value_dim[None, :]
        tl.store(parts_at, total_out, mask=row_there[:, None] & value_dims[None, :])
    else:
        place = (batch * queries + query) * heads + own_head
        out_at = out + place[:, None] * VALUE_SIZE + value_dim[None, :]
        lse_at = lse + (batch * heads + own_head) * queries + query
        _store(out_at, lse_at, total_maximum, total_sum, total_out, row_there, value_dims, BINARY)


@triton.jit(do_not_specialize=["queries", "keys", "heads", "kv_heads", "splits"])
def merge_splits(
    parts, states, out, lse, queries, keys, heads, kv_heads, splits,
    VALUE_SIZE: tl.constexpr, VALUE_DIMS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
    BINARY: tl.constexpr,
):  # fmt: skip
    """The states of all splits, in order."""
    head = tl.program_id(1)
    batch = (head // kv_heads).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = queries * GROUP
    row_there = row < rows
    query = row // GROUP
    own_head = (head % kv_heads) * GROUP + row % GROUP
    value_dim = tl.arange(0, VALUE_DIMS)
    value_dims = value_dim < VALUE_SIZE
    size = tl.num_programs(1).to(tl.int64) * splits * rows
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    merged = tl.zeros((BLOCK_M, VALUE_DIMS), tl.float32)
    seen = tl.zeros((BLOCK_M,), tl.int32)
    for split in range(splits):
        place = (head.to(tl.int64) * splits + split) * rows + row
        other_maximum = tl.load(states + place, mask=row_there, other=-float("inf"))
        other_total = tl.load(states + size + place, mask=row_there, other=0.0)
        other_seen = tl.load(states + 2 * size + place, mask=row_there, other=0.0).to(tl.int32)
        part_at = parts + place[:, None] * VALUE_SIZE + value_dim[None, :]
        part = tl.load(part_at, mask=row_there[:, None] & value_dims[None, :], other=0.0)
        maximum, total, merged, seen = _merge(
            maximum, total, merged, seen, other_maximum, other_total, part, other_seen, BINARY
        )
    place = (batch * queries + query) * heads + own_head
    out_at = out + place[:, None] * VALUE_SIZE + value_dim[None, :]
    lse_at = lse + (batch * heads + own_head) * queries + query
    _store(out_at, lse_at, maximum, total, merged, row_there, value_dims, BINARY)
