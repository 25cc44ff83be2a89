"""The walk of `gpu_walk` for few rows and no mask, as in decoding: on its side, one or two blocks in a step.

Tensor cores multiply 16 rows at least, but 8 columns: keys and values are the rows here, so that few queries
waste less. What waits for other threads comes once for the blocks of a step; a block is still what shares one
update of the maximum. A split holds an even number of blocks, so the two of a step are of one.
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
def _blocks_of(scores):
    """[keys, M] -> the one block or the two of these keys."""
    if scores.shape[0] == BLOCK:
        return (scores,)
    else:
        return tl.split(tl.permute(tl.reshape(scores, (2, BLOCK, scores.shape[1])), (1, 2, 0)))


@triton.jit
def _greatest(blocks):
    """[M] of each block."""
    if len(blocks) == 1:
        return (tl.max(blocks[0], 0),)
    else:
        return tl.reduce(blocks, 0, _greater)


@triton.jit
def _sums(blocks):
    """[lanes, M] -> [M] of each block: lane j takes in lane j + half, then by half as many."""
    LANES: tl.constexpr = blocks[0].shape[0]
    ROWS: tl.constexpr = blocks[0].shape[1]
    if LANES == 1:
        if len(blocks) == 1:
            return (tl.reshape(blocks[0], (ROWS,)),)
        else:
            return tl.reshape(blocks[0], (ROWS,)), tl.reshape(blocks[1], (ROWS,))
    elif len(blocks) == 1:
        return _sums((tl.sum(tl.reshape(blocks[0], (2, LANES // 2, ROWS)), 0),))
    else:
        a = tl.reshape(blocks[0], (2, LANES // 2, ROWS))
        b = tl.reshape(blocks[1], (2, LANES // 2, ROWS))
        return _sums(tl.reduce((a, b), 0, _added))


@triton.jit
def walk_few(
    q, k_map, v_map, batch, kv_head, rows, ends, begin, end, whole_end, before, softcap, scale,
    VALUE_DIMS: tl.constexpr, BINARY: tl.constexpr, NATURAL: tl.constexpr, CAPPED: tl.constexpr,
    BLOCKS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`walk` over the keys of one split, read through tensor maps; k_map: that of BLOCKS blocks."""
    BLOCK_M: tl.constexpr = q.shape[0]
    DIMS: tl.constexpr = q.shape[1]
    KEYS: tl.constexpr = BLOCKS * BLOCK
    key = tl.arange(0, KEYS)
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((VALUE_DIMS, BLOCK_M), tl.float32)
    for first in tl.range(begin, end, KEYS, num_stages=STAGES):
        k = tl.reshape(k_map.load([batch, kv_head, first, 0]), (KEYS, DIMS))
        scores = tl.dot(k, q.T, input_precision="ieee")
        if NATURAL:
            scores = scores * before
        if CAPPED:
            scores = tanh(functions.divide(scores, tl.zeros_like(scores) + softcap)) * softcap
        if first + KEYS > whole_end:
            attended = rows[None, :] & ((first + key)[:, None] < ends[None, :])
            scores = tl.where(attended, scores, -float("inf"))
        blocks = _blocks_of(scores)
        greatest = _greatest(blocks)
        alphas, weights = (), ()
        for i in tl.static_range(BLOCKS):
            now = tl.maximum(maximum, greatest[i] * scale)
            base = finite(now)
            alphas += (power(maximum - base, BINARY),)
            shift = tl.broadcast_to(-base[None, :], blocks[i].shape)
            weights += (power(tl.fma(blocks[i], tl.zeros_like(blocks[i]) + scale, shift), BINARY),)
            maximum = now
        sums = _sums(weights)
        for i in tl.static_range(BLOCKS):
            total = tl.fma(total, alphas[i], sums[i])
            v = tl.reshape(v_map.load([batch, kv_head, first + i * BLOCK, 0]), (BLOCK, VALUE_DIMS)).T
            out = tl.dot(v, weights[i].to(v.dtype), out * alphas[i][None, :], input_precision="ieee")
    return maximum, total, (out.T,), tl.zeros((BLOCK_M,), tl.int32)
