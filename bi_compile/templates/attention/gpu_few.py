"""The walk of `gpu_walk` for few rows and no mask, as in decoding: on its side, two blocks of keys in a step.

Tensor cores multiply 16 rows at least, but 8 columns: keys and values are the rows here, so that few queries
waste less. A split holds an even number of blocks, so the two of a step are of one. What
waits for other threads comes once for both; a block is still what shares one update of the maximum.
"""

import triton
import triton.language as tl

from bi_compile.templates.attention.gpu_arithmetic import BLOCK, finite, power, tanh
from bi_compile.templates.gpu import functions


@triton.jit
def _greater(a, b, c, d):
    return tl.maximum(a, c), tl.maximum(b, d)


@triton.jit
def _added(a, b, c, d):
    return a + c, b + d


@triton.jit
def _sums(a, b):
    """[lanes, M] twice -> [M] twice: lane j takes in lane j + half, then by half as many."""
    LANES: tl.constexpr = a.shape[0]
    ROWS: tl.constexpr = a.shape[1]
    if LANES == 1:
        return tl.reshape(a, (ROWS,)), tl.reshape(b, (ROWS,))
    else:
        a, b = tl.reshape(a, (2, LANES // 2, ROWS)), tl.reshape(b, (2, LANES // 2, ROWS))
        a, b = tl.reduce((a, b), 0, _added)
        return _sums(a, b)


@triton.jit
def _weights(scores, base, scale, BINARY: tl.constexpr):
    shift = tl.broadcast_to(-base[None, :], scores.shape)
    return power(tl.fma(scores, tl.zeros_like(scores) + scale, shift), BINARY)


@triton.jit
def walk_few(
    q, k_map, v_map, batch, kv_head, rows, ends, begin, end, whole_end, before, softcap, scale,
    VALUE_DIMS: tl.constexpr, BINARY: tl.constexpr, NATURAL: tl.constexpr, CAPPED: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """`walk` over the keys of one split, read through tensor maps; k_map: that of two blocks."""
    BLOCK_M: tl.constexpr = q.shape[0]
    DIMS: tl.constexpr = q.shape[1]
    key = tl.arange(0, 2 * BLOCK)
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((VALUE_DIMS, BLOCK_M), tl.float32)
    for first in tl.range(begin, end, 2 * BLOCK, num_stages=STAGES):
        k = tl.reshape(k_map.load([batch, kv_head, first, 0]), (2 * BLOCK, DIMS))
        scores = tl.dot(k, q.T, input_precision="ieee")
        if NATURAL:
            scores = scores * before
        if CAPPED:
            scores = tanh(functions.divide(scores, tl.zeros_like(scores) + softcap)) * softcap
        if first + 2 * BLOCK > whole_end:
            attended = rows[None, :] & ((first + key)[:, None] < ends[None, :])
            scores = tl.where(attended, scores, -float("inf"))
        near, far = tl.split(tl.permute(tl.reshape(scores, (2, BLOCK, BLOCK_M)), (1, 2, 0)))
        greatest, then_greatest = tl.reduce((near, far), 0, _greater)
        now = tl.maximum(maximum, greatest * scale)
        then = tl.maximum(now, then_greatest * scale)
        base, then_base = finite(now), finite(then)
        alpha, then_alpha = power(maximum - base, BINARY), power(now - then_base, BINARY)
        p, then_p = _weights(near, base, scale, BINARY), _weights(far, then_base, scale, BINARY)
        maximum = then
        sums, then_sums = _sums(p, then_p)
        total = tl.fma(tl.fma(total, alpha, sums), then_alpha, then_sums)
        v = tl.reshape(v_map.load([batch, kv_head, first, 0]), (BLOCK, VALUE_DIMS)).T
        out = tl.dot(v, p.to(v.dtype), out * alpha[None, :], input_precision="ieee")
        v = tl.reshape(v_map.load([batch, kv_head, first + BLOCK, 0]), (BLOCK, VALUE_DIMS)).T
        out = tl.dot(v, then_p.to(v.dtype), out * then_alpha[None, :], input_precision="ieee")
    return maximum, total, (out.T,), tl.zeros((BLOCK_M,), tl.int32)
