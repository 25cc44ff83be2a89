"""The walk of `gpu_walk` for large heads, where the weights of a block meet its values one block later.

A program of such heads is alone on its multiprocessor. Tensor cores multiply the weights of the block before
while it works out those of this one, and the next block is loaded meanwhile; each row takes the same steps in
the same order. Where things stand follows from what Triton 3.6 waits for, and when:

- a product runs on where its sum is read after the next one was waited for, or in a branch after that: so the
  branch that multiplies the sum needs the scores;
- loads are issued before a branch of which no product depends: so the weights are worked out in one;
- the weights of the block before are integers between blocks: else they would go through shared memory.
"""

import triton
import triton.language as tl

from bi_compile.templates.attention.gpu_arithmetic import (
    BLOCK,
    SPLIT,
    added_tiles,
    factors,
    finite,
    power,
    row_sum,
    starts_split,
    zeros_of,
)
from bi_compile.templates.attention.gpu_held import add_split, nothing_kept, place_of_program, with_split
from bi_compile.templates.attention.gpu_products import mapped_scores, mapped_values


@triton.jit
def _weights(scores, maximum, scale):
    shift = tl.broadcast_to(-finite(maximum)[:, None], scores.shape)
    return power(tl.fma(scores, tl.zeros_like(scores) + scale, shift), True)


@triton.jit
def _bits(weights, q):
    return weights.to(q.dtype).to(tl.int16, bitcast=True)


@triton.jit
def _merged(
    all_maximum, maximum, all_out, out, first, held, zero, M: tl.constexpr, COLUMNS: tl.constexpr,
    HELD: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of finished splits with one that ends before key `first`, and zeros for the next."""
    own = place_of_program(held, first & tl.cast(zero, tl.int32, bitcast=True), M * HELD)
    all_maximum, a, c = factors(all_maximum, maximum, True)
    all_out = add_split(all_out, own, a, out, c, first > SPLIT // 2, COLUMNS - HELD, AT_ONCE)
    # Zeros that the compiler does not know: it would select them in every block.
    return all_maximum, all_out, zeros_of(zero, M, COLUMNS, 0)


@triton.jit
def walk_late(
    q, k_map, v_map, batch, kv_head, tile, queries, keys, end, scale, zero,
    BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr, CAUSAL: tl.constexpr,
    STAGES: tl.constexpr, held, HELD: tl.constexpr,
):  # fmt: skip
    """`walk` from key 0 to `end` of heads in one tile of COLUMNS, in 16 bits, through tensor maps.

    Without mask and softcap, in several splits that are walked in sequence; HELD is not 0. Not in two tiles:
    behind such a loop ptxas 12.8 read the last values of tiles of 16 and 32 columns from wrong addresses.
    """
    SPAN: tl.constexpr = (BLOCK_M + GROUP - 1) // GROUP
    key = tl.arange(0, BLOCK)
    query = (tile * BLOCK_M + tl.arange(0, BLOCK_M)) // GROUP
    ends = tl.where(query < queries, tl.minimum(query + 1, keys) if CAUSAL else keys, 0)
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    all_maximum, all_total = maximum, total
    out = zeros_of(0.0, BLOCK_M, COLUMNS, 0)
    all_out = nothing_kept(BLOCK_M, COLUMNS, 0, COLUMNS - HELD)
    # Of the block before: its weights; what the sum is multiplied by first, or where the block began a split
    # the maximum of the split that ended.
    weights = tl.zeros((BLOCK_M, BLOCK), tl.int16)
    factor = total
    begin = tl.full((), 0, tl.int32)
    for at in tl.range(begin, end, BLOCK, num_stages=STAGES):
        # Not the interpreter's integer.
        first = at + begin
        scores = mapped_scores((q,), (k_map,), batch, kv_head, first)
        # Nearer to the end than the queries of a tile are apart; told by what needs no register.
        if first + (BLOCK + SPAN) > end:
            scores = tl.where((first + key)[None, :] < ends[:, None], scores, -float("inf"))
        greatest = tl.max(scores, 1) * scale
        before = first - BLOCK
        # The new maximum in both branches: so they need the scores, and come behind the wait for them.
        if starts_split(before) & (before > 0):
            all_maximum, all_out, out = _merged(
                all_maximum, factor, all_out, out, before, held, zero, BLOCK_M, COLUMNS, HELD, 64
            )
            now = tl.maximum(maximum, greatest)
        else:
            out = [x * factor[:, None] for x in out]
            now = tl.maximum(maximum, greatest)
        # Before the first block: zeros, as beyond all keys.
        values_at = tl.where(first > 0, before, keys)
        out = mapped_values(weights.to(q.dtype, bitcast=True), out, (v_map,), batch, kv_head, values_at)
        if starts_split(first) & (first > 0):
            _, a, c = factors(all_maximum, maximum, True)
            all_total = tl.fma(all_total, a, total * c)
            factor, maximum = maximum, greatest
            p = _weights(scores, maximum, scale)
            total = row_sum(p)
            weights = _bits(p, q)
        else:
            factor = power(maximum - finite(now), True)
            maximum = now
            p = _weights(scores, maximum, scale)
            total = tl.fma(total, factor, row_sum(p))
            weights = _bits(p, q)
    last = tl.cdiv(end, BLOCK) * BLOCK - BLOCK
    if starts_split(last) & (last > 0):
        all_maximum, all_out, out = _merged(
            all_maximum, factor, all_out, out, last, held, zero, BLOCK_M, COLUMNS, HELD, 32
        )
    else:
        out = [x * factor[:, None] for x in out]
    out = mapped_values(weights.to(q.dtype, bitcast=True), out, (v_map,), batch, kv_head, last)
    now, a, c = factors(all_maximum, maximum, True)
    if end > SPLIT // 2:
        own = place_of_program(held, end & tl.cast(zero, tl.int32, bitcast=True), BLOCK_M * HELD)
        out = with_split(all_out, own, a, out, c, COLUMNS - HELD)
    else:
        out = added_tiles([tl.zeros_like(x) for x in out], a, out, c)
    # What is worked out of the sum stays behind its loads.
    tl.debug_barrier()
    return now, tl.fma(all_total, a, total * c), out, tl.zeros((BLOCK_M,), tl.int32)
