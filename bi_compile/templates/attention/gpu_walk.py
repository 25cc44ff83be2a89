"""The walk of a tile of rows over its keys in Triton: blocks, splits, masks."""

import triton
import triton.language as tl

from bi_compile.templates.attention.gpu_arithmetic import (
    ADDITIVE,
    BLOCK,
    BOOLEAN,
    SPLIT,
    added_tiles,
    factors,
    finite,
    merge,
    power,
    row_sum,
    starts_split,
    tanh,
    where_tiles,
    zeros_of,
)
from bi_compile.templates.attention.gpu_held import add_split, nothing_kept, place_of_program, with_split
from bi_compile.templates.attention.gpu_masks import rows_of_mask
from bi_compile.templates.attention.gpu_products import scores_of, take_in
from bi_compile.templates.gpu import functions


@triton.jit
def _below(count):
    """[M] -> int64 [M]: the lowest bits of a word, so many."""
    one = tl.full(count.shape, 1, tl.int64)
    some = (one << tl.minimum(tl.maximum(count, 0), BLOCK - 1).to(tl.int64)) - 1
    return tl.where(count >= BLOCK, -1, some)


@triton.jit
def _bits(word, key):
    """[M], [BLOCK] -> int1 [M, BLOCK]: the bits of a word of 64.

    A thread of a product has two keys out of eight: it shifts a word to them once, and all else is constant.
    Shifted by each key, 32 registers would hold what it is shifted by, or to.
    """
    near, far = word.to(tl.int32), (word >> 32).to(tl.int32)
    own, others = key & 6, key & 25
    shifted = tl.where((key < 32)[None, :], near[:, None] >> own[None, :], far[:, None] >> own[None, :])
    return (shifted & (1 << others)[None, :]) != 0


@triton.jit
def _masked(
    scores, mask, rows, first, key, lows, ends, unit, least, lowest, MASK: tl.constexpr, APART: tl.constexpr
):
    """Scores of the keys from `first` on with the mask, -inf where a key is not there; which are attended."""
    if MASK == ADDITIVE:
        # -inf where a key is not there: so it was read.
        add = mask.to(tl.float32)
        factor = tl.zeros_like(add) + unit
        added = tl.where(add <= lowest, add * factor, tl.fma(add, factor, scores))
        # The lowest numbers would overflow.
        return tl.where((added < least) & (add > -float("inf")), least, added), add > lowest
    if MASK == BOOLEAN:
        word = mask & _below(ends - first)
        if APART:
            word = tl.where(rows, word & ~_below(lows - first), 0)
        attended = _bits(word, key)
    else:
        at = first + key
        attended = rows[:, None] & (at[None, :] < ends[:, None])
        if APART:
            attended = attended & (at[None, :] >= lows[:, None])
    return tl.where(attended, scores, -float("inf")), attended


_NEVER = tl.constexpr(0)
_WHERE_NEEDED = tl.constexpr(1)
_ALWAYS = tl.constexpr(2)


@triton.jit
def _blocks(
    state, begin, end, whole_begin, whole_end,
    q, k_head, v_head, k_block, v_block, k_maps, v_maps, batch, kv_head, mask_of, rows, firsts, lows, ends,
    keys, q_step, k_step, k_stride, v_stride,
    before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
    SIZE: tl.constexpr, BINARY: tl.constexpr, NATURAL: tl.constexpr, CAPPED: tl.constexpr,
    MASK: tl.constexpr, EVEN: tl.constexpr, MAPS: tl.constexpr, SPLITS: tl.constexpr,
    CAREFUL: tl.constexpr, APART: tl.constexpr, MASKED: tl.constexpr, AGAIN: tl.constexpr,
    STAGES: tl.constexpr, held, HELD: tl.constexpr, VALUE_REST: tl.constexpr,
):  # fmt: skip
    """`walk` from a state to the next. MASKED: to which blocks the mask is applied.

    mask_of: what `rows_of_mask` gives or, AGAIN, takes in each block.
    """
    BLOCK_M: tl.constexpr = rows.shape[0]
    VALUE_DIMS: tl.constexpr = value_dims.shape[0]
    COLUMNS: tl.constexpr = VALUE_DIMS + VALUE_REST
    key = tl.arange(0, BLOCK)
    maximum, total, out, seen, all_maximum, all_total, all_out, all_seen = state
    # Registers are short there: nothing that a block could work out again is kept in them.
    LARGE: tl.constexpr = COLUMNS > 128 and not APART and (not MAPS or MASK != 0 or CAPPED)
    SHORT: tl.constexpr = CAREFUL or LARGE or (BINARY and APART and (MASK == ADDITIVE or not MAPS))
    # There values are not read ahead either.
    SHORTER: tl.constexpr = (not BINARY and COLUMNS > 128 and APART) or (MASK != 0 and COLUMNS > 256)
    for first in tl.range(begin, end, BLOCK, num_stages=STAGES, disable_licm=SHORT):
        offsets = tl.multiple_of(first - firsts, BLOCK)
        masked = (first < whole_begin) | (first + BLOCK > whole_end)
        # Before the products: the layout of a mask would otherwise become that of the scores.
        mask = seen
        if MASK != 0 and MASKED != _NEVER:
            # A row that is not there ends before it begins.
            meets = first < ends
            if MASKED == _WHERE_NEEDED:
                meets = meets & masked
            if APART:
                meets = rows & meets & (first >= lows)
            if AGAIN:
                nothing = tl.multiple_of(first & tl.cast(zero, tl.int32, bitcast=True), 16)
                mask_rows = rows_of_mask(mask_of, batch, kv_head, nothing, BLOCK_M)
            else:
                mask_rows = mask_of
            if MASK == BOOLEAN:
                mask = tl.load(mask_rows + offsets // BLOCK, mask=meets, other=0)
            elif APART:
                mask_at = mask_rows[:, None] + (offsets[:, None] + key[None, :])
                mask = tl.load(mask_at, mask=meets[:, None], other=-float("inf"))
            else:
                mask_at = mask_rows[:, None] + (offsets + key)[None, :]
                mask = tl.load(mask_at, mask=meets[:, None], other=-float("inf"))
        # Of 16 bits its bits: whether there are any pieces would be kept for all blocks.
        no_pieces = first & tl.cast(zero, tl.int32, bitcast=True) if BINARY else tl.cast(zero, tl.int32)
        scores = scores_of(
            q, k_head, k_block, k_maps, batch, kv_head, rows, first, keys, q_step, k_step, k_stride, key_dims,
            no_pieces, SIZE, EVEN, MAPS,
        )  # fmt: skip
        if NATURAL:
            scores = scores * before
        if CAPPED:
            scores = tanh(functions.divide(scores, tl.zeros_like(scores) + softcap)) * softcap
        if MASKED == _ALWAYS:
            scores, attended = _masked(
                scores, mask, rows, first, key, lows, ends, unit, least, lowest, MASK, APART
            )
        elif MASKED == _NEVER:
            if MASK == ADDITIVE:
                scores = tl.where(scores < least, least, scores)
        elif masked:
            scores, _ = _masked(scores, mask, rows, first, key, lows, ends, unit, least, lowest, MASK, APART)
        past_maximum, past_total, fresh = maximum, total, False
        if SPLITS:
            fresh = starts_split(offsets) & (first > firsts)
            maximum = tl.where(fresh, -float("inf"), maximum)
            if not HELD:
                total = tl.where(fresh, 0.0, total)
        now = tl.maximum(maximum, tl.max(scores, 1) * scale)
        base = finite(now)
        alpha = power(maximum - base, BINARY)
        p = tl.fma(scores, tl.zeros_like(scores) + scale, tl.broadcast_to(-base[:, None], scores.shape))
        p = power(p, BINARY)
        maximum = now
        sums = row_sum(p)
        # HELD: in the branch below, so that less is kept during it.
        if not HELD:
            total = tl.fma(total, alpha, sums)
        if HELD:
            # Before the branch, during which half as many registers wait so.
            p = p.to(q[0].dtype)
        if SPLITS:
            some_fresh = fresh
            if APART:
                some_fresh = tl.max((rows & fresh).to(tl.int32), 0) != 0
            if some_fresh:
                if HELD:
                    nothing = tl.cast(zero, tl.int32, bitcast=True)
                    all_maximum, a, c = factors(all_maximum, past_maximum, BINARY)
                    all_total = tl.fma(all_total, a, past_total * c)
                    own = place_of_program(held, first & nothing, BLOCK_M * HELD)
                    known = offsets > SPLIT // 2
                    all_out = add_split(all_out, own, a, out, c, known, COLUMNS - HELD, 0)
                    total = sums
                else:
                    merged = merge(
                        all_maximum, all_total, all_out, all_seen, past_maximum, past_total, out, seen,
                        BINARY, CAREFUL,
                    )  # fmt: skip
                    if APART:
                        all_maximum = tl.where(fresh, merged[0], all_maximum)
                        all_total = tl.where(fresh, merged[1], all_total)
                        all_out = where_tiles(fresh, merged[2], all_out)
                        all_seen = tl.where(fresh, merged[3], all_seen)
                    else:
                        all_maximum, all_total, all_out, all_seen = merged
                if APART:
                    out = [tl.where(fresh[:, None], 0.0, x) for x in out]
                    seen = tl.where(fresh, 0, seen)
                else:
                    # Zeros that the compiler does not know: it would select them in every block.
                    out = zeros_of(zero, BLOCK_M, VALUE_DIMS, VALUE_REST)
                    seen = tl.zeros((BLOCK_M,), tl.int32)
            elif not (CAREFUL or APART):
                # Not after the branch: that would then come before the scores, and wait for the last values.
                out = [x * alpha[:, None] for x in out]
                if HELD:
                    total = tl.fma(total, alpha, sums)
        counts = seen
        if CAREFUL:
            counts = attended | (p != 0)
            out = [tl.where(((alpha == 0) & (seen == 0))[:, None], 0.0, x * alpha[:, None]) for x in out]
            seen = tl.maximum(seen, tl.max(attended.to(tl.int32), 1))
        elif APART or not SPLITS:
            out = [x * alpha[:, None] for x in out]
        out = take_in(
            p, counts, out, v_head, v_block, v_maps, batch, kv_head, first, keys, v_stride, value_dims,
            EVEN, MAPS, CAREFUL, SHORTER,
        )  # fmt: skip
    return maximum, total, out, seen, all_maximum, all_total, all_out, all_seen


@triton.jit
def walk(
    q, k_head, v_head, k_block, v_block, k_maps, v_maps, batch, kv_head, mask_of, rows, firsts, lows, ends,
    begin, end, whole_begin, whole_end, keys, q_step, k_step, k_stride, v_stride,
    before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
    SIZE: tl.constexpr, BINARY: tl.constexpr, NATURAL: tl.constexpr, CAPPED: tl.constexpr,
    MASK: tl.constexpr, EVEN: tl.constexpr, MAPS: tl.constexpr, SPLITS: tl.constexpr,
    CAREFUL: tl.constexpr, APART: tl.constexpr, STAGES: tl.constexpr, held, HELD: tl.constexpr,
    VALUE_REST: tl.constexpr,
):  # fmt: skip
    """The state of rows [M] after the keys from begin to end.

    mask_of: what `rows_of_mask` takes, or what it gives where APART and not CAREFUL. firsts: the key from
    which blocks and splits are counted, [M] where APART, all a multiple of BLOCK away from begin. lows, ends
    [M]: where each row's keys begin, where APART, and end: at 0 for rows that are not there. whole_begin,
    whole_end: the keys between are there for all rows, with nothing added. SPLITS: there may be several.
    NATURAL: scores are multiplied by `before` on their own, not in the exponent. MAPS: keys and values are
    read through tensor maps. CAREFUL: values may be non-finite; seen [M], whether a row has met a key that is
    not masked, is kept there alone. STAGES: how many blocks are on the way at a time. held: where HELD
    columns of the sum of finished splits wait for each program, as `place_of_program` takes it, see
    `gpu_held`; with neither CAREFUL nor APART.
    """
    BLOCK_M: tl.constexpr = rows.shape[0]
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    VALUE_DIMS: tl.constexpr = value_dims.shape[0]
    COLUMNS: tl.constexpr = VALUE_DIMS + VALUE_REST
    out = zeros_of(0.0, BLOCK_M, VALUE_DIMS, VALUE_REST)
    seen = tl.zeros((BLOCK_M,), tl.int32)
    all_out = out
    if HELD:
        all_out = nothing_kept(BLOCK_M, VALUE_DIMS, VALUE_REST, COLUMNS - HELD)
    state = (maximum, total, out, seen, maximum, total, all_out, seen)
    # Where each row of a mask begins is worked out in each block where registers are short.
    AGAIN: tl.constexpr = (CAREFUL and BINARY) or (
        not APART and BLOCK_M > 16 and (COLUMNS > 128 or MASK == ADDITIVE)
    )
    if MASK != 0 and (CAREFUL or not APART) and not AGAIN:
        mask_of = rows_of_mask(mask_of, batch, kv_head, 0, BLOCK_M)
    # With a mask, a loop for the blocks that it leaves as they are, and one for the rest.
    LOOPS: tl.constexpr = MASK != 0 and not (CAREFUL or APART)
    NEEDED: tl.constexpr = not CAREFUL and (MASK == 0 or (MASK == BOOLEAN and APART))
    if LOOPS:
        masked = begin + tl.maximum(0, tl.minimum(whole_end, end) - begin) // BLOCK * BLOCK
        state = _blocks(
            state, begin, masked, whole_begin, whole_end,
            q, k_head, v_head, k_block, v_block, k_maps, v_maps, batch, kv_head, mask_of, rows, firsts, lows,
            ends, keys, q_step, k_step, k_stride, v_stride, before, softcap, scale, unit, least, lowest, zero,
            key_dims, value_dims, SIZE, BINARY, NATURAL, CAPPED, MASK, EVEN, MAPS, SPLITS, CAREFUL, APART,
            _NEVER, AGAIN, STAGES, held, HELD, VALUE_REST,
        )  # fmt: skip
        begin = masked
    # What is read of the mask takes its place in shared memory.
    maximum, total, out, seen, all_maximum, all_total, all_out, all_seen = _blocks(
        state, begin, end, whole_begin, whole_end,
        q, k_head, v_head, k_block, v_block, k_maps, v_maps, batch, kv_head, mask_of, rows, firsts, lows,
        ends, keys, q_step, k_step, k_stride, v_stride, before, softcap, scale, unit, least, lowest, zero,
        key_dims, value_dims, SIZE, BINARY, NATURAL, CAPPED, MASK, EVEN, MAPS, SPLITS, CAREFUL, APART,
        _WHERE_NEEDED if NEEDED else _ALWAYS, AGAIN, 2 if LOOPS and STAGES > 2 else STAGES, held, HELD,
        VALUE_REST,
    )  # fmt: skip
    if HELD:
        now, a, c = factors(all_maximum, maximum, BINARY)
        if end > firsts + SPLIT // 2:
            own = place_of_program(held, end & tl.cast(zero, tl.int32, bitcast=True), BLOCK_M * HELD)
            out = with_split(all_out, own, a, out, c, COLUMNS - HELD)
        else:
            # Not by selected zeros above: the products of the loop would be waited for one by one.
            out = added_tiles([tl.zeros_like(x) for x in out], a, out, c)
        # What is worked out of the sum stays behind its loads.
        tl.debug_barrier()
        return now, tl.fma(all_total, a, total * c), out, seen
    elif SPLITS:
        return merge(all_maximum, all_total, all_out, all_seen, maximum, total, out, seen, BINARY, CAREFUL)
    else:
        return maximum, total, out, seen
