"""Attention in Triton: splits of the keys walked in sequence or in parallel, one tree for every row.

A tile holds BLOCK_M rows of the query heads that share one kv head: row r is query r // GROUP of head r %
GROUP. Neither the tile nor the number of warps enters a row's bits: products are chains over their inner
dim whatever the tile (docs/gpu-order.md), and the sum of a block's weights is an explicit fold.

Blocks and splits are counted from a row's first visible key. A tile whose rows do not share it is left to
the CAREFUL kernel, which takes them one first key after the other.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda

from bi_compile.templates.attention.gpu_arithmetic import (
    ADDITIVE,
    BLOCK,
    BOOLEAN,
    finite,
    merge,
    power,
    row_sum,
    split_begin,
    starts_split,
    store_rows,
    tanh,
    unwanted,
)
from bi_compile.templates.gpu import functions


@triton.jit
def _walk(
    q, k_head, v_head, k_block, v_block, k_map, v_map, batch, kv_head, mask_rows, rows, ends,
    first_key, begin, end, whole, keys, k_stride, v_stride,
    before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
    BINARY: tl.constexpr, NATURAL: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr,
    EVEN: tl.constexpr, MAPS: tl.constexpr, SPLITS: tl.constexpr, CAREFUL: tl.constexpr,
):  # fmt: skip
    """The state of rows [M] after the keys from begin to end, blocks counted from first_key.

    ends [M]: each row's own end. whole: keys before it are there for all rows. SPLITS: there may be several.
    NATURAL: scores are multiplied by `before` on their own, not in the exponent. MAPS: keys and values are
    read through tensor maps. CAREFUL: values may be non-finite; seen [M], whether a row has met a key that is
    not masked, is kept there alone.
    """
    BLOCK_M: tl.constexpr = q.shape[0]
    DIMS: tl.constexpr = q.shape[1]
    VALUE_DIMS: tl.constexpr = value_dims.shape[0]
    key = tl.arange(0, BLOCK)
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, VALUE_DIMS), tl.float32)
    seen = tl.zeros((BLOCK_M,), tl.int32)
    all_maximum, all_total, all_out, all_seen = maximum, total, out, seen
    for first in range(begin, end, BLOCK):
        at = tl.cast(first, tl.int64)
        there = first + key < keys
        if MAPS:
            k = tl.reshape(k_map.load([batch, kv_head, first, 0]), (BLOCK, DIMS)).T
        elif EVEN:
            k = tl.load(k_head + at * k_stride + k_block, mask=there[None, :], other=0.0)
        else:
            k = tl.load(k_head + at * k_stride + k_block, mask=key_dims[:, None] & there[None, :], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee")
        # Nested: the first is a constant, the second a number of the device.
        if SPLITS:  # noqa: SIM102
            if starts_split(first - first_key):
                all_maximum, all_total, all_out, all_seen = merge(
                    all_maximum, all_total, all_out, all_seen, maximum, total, out, seen, BINARY, CAREFUL
                )
                # Zeros that the compiler does not know: it would select them in every block.
                maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
                total = tl.full((BLOCK_M,), zero, tl.float32)
                out = tl.full((BLOCK_M, VALUE_DIMS), zero, tl.float32)
                seen = tl.zeros((BLOCK_M,), tl.int32)
        if NATURAL:
            scores = scores * before
        if CAPPED:
            scores = tanh(functions.divide(scores, tl.zeros_like(scores) + softcap)) * softcap
        attended = rows[:, None] & (first + key[None, :] < ends[:, None])
        if MASK == BOOLEAN:
            word = tl.load(mask_rows + (first - first_key) // BLOCK, mask=rows & (first < ends), other=0)
            attended = attended & (((word[:, None] >> key[None, :].to(tl.int64)) & 1) != 0)
            scores = tl.where(attended, scores, -float("inf"))
        elif MASK == ADDITIVE:
            add_at = mask_rows[:, None] + (first - first_key + key)[None, :]
            add = tl.load(add_at, mask=(rows & (first < ends))[:, None], other=-float("inf")).to(tl.float32)
            add = tl.where(attended, add, -float("inf"))
            factor = tl.zeros_like(add) + unit
            added = tl.where(add <= lowest, add * factor, tl.fma(add, factor, scores))
            # The lowest numbers would overflow; -inf is a key that is not there.
            added = tl.where((added < least) & (add > -float("inf")), least, added)
            scores = tl.where(add == -float("inf"), add, added)
            attended = attended & (add > lowest)
        elif first + BLOCK > whole:
            scores = tl.where(attended, scores, -float("inf"))
        now = tl.maximum(maximum, tl.max(scores, 1) * scale)
        base = finite(now)
        alpha = power(maximum - base, BINARY)
        p = tl.fma(scores, tl.zeros_like(scores) + scale, tl.broadcast_to(-base[:, None], scores.shape))
        p = power(p, BINARY)
        maximum = now
        total = tl.fma(total, alpha, row_sum(p))
        if MAPS:
            v = tl.reshape(v_map.load([batch, kv_head, first, 0]), (BLOCK, VALUE_DIMS))
        elif EVEN:
            v = tl.load(v_head + at * v_stride + v_block, mask=there[:, None], other=0.0)
        else:
            v = tl.load(
                v_head + at * v_stride + v_block, mask=there[:, None] & value_dims[None, :], other=0.0
            )
        if CAREFUL:
            out = tl.where(((alpha == 0) & (seen == 0))[:, None], 0.0, out * alpha[:, None])
            met = tl.where(tl.abs(v.to(tl.float32)) < float("inf"), v, tl.zeros_like(v))
            out = tl.dot(p.to(v.dtype), met, out, input_precision="ieee")
            out = unwanted(p, attended | (p != 0), v, out)
            seen = tl.maximum(seen, tl.max(attended.to(tl.int32), 1))
        else:
            out = tl.dot(p.to(v.dtype), v, out * alpha[:, None], input_precision="ieee")
    if SPLITS:
        return merge(all_maximum, all_total, all_out, all_seen, maximum, total, out, seen, BINARY, CAREFUL)
    else:
        return maximum, total, out, seen


@triton.jit
def _strange(out):
    """Whether anything in out is not finite."""
    return tl.max(tl.max((tl.abs(out) < float("inf")).to(tl.int32) ^ 1, 1), 0)


@triton.jit(
    do_not_specialize=[
        "queries", "keys", "heads", "kv_heads", "all_heads", "splits", "tiles", "together", "programs",
    ]
)  # fmt: skip
def attend(
    q, k, v, k_map, v_map, mask, begins, ends, out, lse, parts, states, flags,
    queries, keys, heads, kv_heads, all_heads, splits, tiles, together, programs,
    before, softcap, scale, unit, least, lowest, zero,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_row, k_dim, v_batch, v_head, v_row, v_dim,
    mask_batch, mask_head, mask_row, bound_batch, bound_head, bound_row,
    SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, DIMS: tl.constexpr, VALUE_DIMS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BINARY: tl.constexpr, NATURAL: tl.constexpr,
    CAPPED: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, PARALLEL: tl.constexpr,
    ONE_SPLIT: tl.constexpr, MAPS: tl.constexpr, FLAGGED: tl.constexpr, CAREFUL: tl.constexpr,
    TILES: tl.constexpr, PARTS_OF_TILE: tl.constexpr, IN_TURNS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One tile over all splits or, PARALLEL, over one of them, whose state goes to `parts` and `states`.

    FLAGGED: leaves in flags [programs] whether the tile holds anything non-finite or rows of several first
    keys. CAREFUL: does the flagged ones of TILES tiles anew, each in PARTS_OF_TILE of BLOCK_M rows. EARLY:
    `merge_splits` may be started before this kernel ends.

    all_heads: batch * kv_heads. IN_TURNS: the tiles of `together` heads come in turns, the longest first.
    parts [all_heads, splits, rows, VALUE_SIZE], states [3, all_heads, splits, rows]: maximum, sum and whether
    a key was met that is not masked.
    """
    if EARLY:
        cuda.gdc_launch_dependents()
    if CAREFUL:
        numbers = tl.program_id(0) * TILES + tl.arange(0, TILES)
        if tl.max(tl.load(flags + numbers, mask=numbers < programs, other=0), 0) == 0:
            return
    dim, value_dim = tl.arange(0, DIMS), tl.arange(0, VALUE_DIMS)
    key = tl.arange(0, BLOCK)
    key_dims, value_dims = dim < SIZE, value_dim < VALUE_SIZE
    # Offsets, not addresses: a tile of those takes twice the registers.
    k_block = dim[:, None] * k_dim + key[None, :] * k_row
    v_block = key[:, None] * v_row + value_dim[None, :] * v_dim
    EVEN: tl.constexpr = SIZE == DIMS and VALUE_SIZE == VALUE_DIMS
    SPLITS: tl.constexpr = not (PARALLEL or ONE_SPLIT)
    for step in range(TILES * PARTS_OF_TILE):
        head, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        wanted = 1
        if CAREFUL:
            number = tl.program_id(0) * TILES + step // PARTS_OF_TILE
            wanted = tl.load(flags + number, mask=number < programs, other=0)
            head, tile, split = number % all_heads, number // all_heads % tiles, number // all_heads // tiles
        elif IN_TURNS:
            rest = tile * all_heads + head
            band = rest // (together * tiles)
            width = tl.minimum(together, all_heads - band * together)
            rest = rest - band * together * tiles
            head = band * together + rest % width
            tile = tiles - 1 - rest // width
        if wanted != 0:
            batch, kv_head = head // kv_heads, head % kv_heads
            far_batch = batch.to(tl.int64)
            k_of_head = k + far_batch * k_batch + kv_head.to(tl.int64) * k_head
            v_of_head = v + far_batch * v_batch + kv_head.to(tl.int64) * v_head
            row = (tile * PARTS_OF_TILE + step % PARTS_OF_TILE) * BLOCK_M + tl.arange(0, BLOCK_M)
            row_there = row < queries * GROUP
            query = row // GROUP
            own_head = kv_head * GROUP + row % GROUP
            q_at = own_head * q_head + query.to(tl.int64) * q_row
            q_at = q + far_batch * q_batch + q_at[:, None] + dim[None, :] * q_dim
            tile_q = tl.load(q_at, mask=row_there[:, None] & key_dims[None, :], other=0.0)
            mask_rows = mask + far_batch * mask_batch + own_head * mask_head + query.to(tl.int64) * mask_row

            # Each row's first key, -1 where it has none, and its end; what comes before `whole` all rows see.
            own_first = tl.zeros((BLOCK_M,), tl.int32)
            own_end = tl.zeros((BLOCK_M,), tl.int32) + keys
            whole = keys
            if CAUSAL:
                own_end = tl.minimum(own_end, query + 1)
                whole = tl.minimum(keys, tl.min(query, 0) + 1)
            if MASK != 0:
                bound = far_batch * bound_batch + own_head * bound_head + query * bound_row
                own_first = tl.load(begins + bound, mask=row_there, other=-1)
                own_end = tl.minimum(own_end, tl.load(ends + bound, mask=row_there, other=0))
                if CAUSAL:
                    own_first = tl.where(own_first < own_end, own_first, 0 if MASK == ADDITIVE else -1)
            left = row_there & (own_first >= 0)
            maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
            total = tl.zeros((BLOCK_M,), tl.float32)
            found = tl.zeros((BLOCK_M, VALUE_DIMS), tl.float32)
            seen = tl.zeros((BLOCK_M,), tl.int32)
            if CAREFUL and MASK != 0:
                while tl.max(left.to(tl.int32), 0) > 0:
                    first_key = tl.min(tl.where(left, own_first, keys), 0)
                    rows = left & (own_first == first_key)
                    left = left & (own_first != first_key)
                    begin, end = first_key, tl.max(tl.where(rows, own_end, 0), 0)
                    if PARALLEL:
                        begin = first_key + split_begin(split)
                        end = tl.minimum(end, first_key + split_begin(split + 1))
                    new_maximum, new_total, new_out, new_seen = _walk(
                        tile_q, k_of_head, v_of_head, k_block, v_block, k_map, v_map, batch, kv_head,
                        mask_rows, rows, own_end, first_key, begin, end, whole, keys, k_row, v_row,
                        before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
                        BINARY, NATURAL, CAPPED, MASK, EVEN, MAPS, SPLITS, False,
                    )  # fmt: skip
                    if _strange(tl.where(rows[:, None], new_out, 0.0)) != 0:
                        new_maximum, new_total, new_out, new_seen = _walk(
                            tile_q, k_of_head, v_of_head, k_block, v_block, k_map, v_map, batch, kv_head,
                            mask_rows, rows, own_end, first_key, begin, end, whole, keys, k_row, v_row,
                            before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
                            BINARY, NATURAL, CAPPED, MASK, EVEN, MAPS, SPLITS, True,
                        )  # fmt: skip
                    maximum = tl.where(rows, new_maximum, maximum)
                    total = tl.where(rows, new_total, total)
                    found = tl.where(rows[:, None], new_out, found)
                    seen = tl.where(rows, new_seen, seen)
            else:
                first_key = 0
                end = tl.max(own_end, 0)
                several = 0
                if MASK != 0:
                    first_key = tl.min(tl.where(left, own_first, keys), 0)
                    several = (tl.max(tl.where(left, own_first, -1), 0) > first_key).to(tl.int32)
                    end = tl.max(tl.where(left, own_end, 0), 0)
                    end = tl.where(several == 0, end, 0)
                begin = first_key
                if PARALLEL:
                    begin = first_key + split_begin(split)
                    end = tl.minimum(end, first_key + split_begin(split + 1))
                maximum, total, found, seen = _walk(
                    tile_q, k_of_head, v_of_head, k_block, v_block, k_map, v_map, batch, kv_head,
                    mask_rows, row_there, own_end, first_key, begin, end, whole, keys, k_row, v_row,
                    before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
                    BINARY, NATURAL, CAPPED, MASK, EVEN, MAPS, SPLITS, CAREFUL,
                )  # fmt: skip
                if FLAGGED and not CAREFUL:
                    # A weight of 0 may have met a NaN or an infinity; sums of one too far are NaN by now.
                    number = (split * tiles + tile) * all_heads + head
                    tl.store(flags + number, tl.maximum(several, _strange(found)))
            rows_of_head = queries * GROUP
            if PARALLEL:
                place = (head.to(tl.int64) * splits + split) * rows_of_head + row
                size = all_heads.to(tl.int64) * splits * rows_of_head
                tl.store(states + place, maximum, mask=row_there)
                tl.store(states + size + place, total, mask=row_there)
                if FLAGGED:
                    tl.store(states + 2 * size + place, seen.to(tl.float32), mask=row_there)
                parts_at = parts + place[:, None] * VALUE_SIZE + value_dim[None, :]
                tl.store(parts_at, found, mask=row_there[:, None] & value_dims[None, :])
            else:
                place = (far_batch * queries + query) * heads + own_head
                out_at = out + place[:, None] * VALUE_SIZE + value_dim[None, :]
                lse_at = lse + (far_batch * heads + own_head) * queries + query
                store_rows(out_at, lse_at, maximum, total, found, row_there, value_dims, BINARY)


@triton.jit(do_not_specialize=["queries", "heads", "kv_heads", "splits"])
def merge_splits(
    parts, states, out, lse, queries, heads, kv_heads, splits,
    VALUE_SIZE: tl.constexpr, VALUE_DIMS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
    BINARY: tl.constexpr, FLAGGED: tl.constexpr, EARLY: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The states of all splits, in order."""
    head = tl.program_id(0)
    batch = (head // kv_heads).to(tl.int64)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = queries * GROUP
    row_there = row < rows
    query = row // GROUP
    own_head = (head % kv_heads) * GROUP + row % GROUP
    value_dim = tl.arange(0, VALUE_DIMS)
    value_dims = value_dim < VALUE_SIZE
    size = tl.num_programs(0).to(tl.int64) * splits * rows
    maximum = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    merged = tl.zeros((BLOCK_M, VALUE_DIMS), tl.float32)
    seen = tl.zeros((BLOCK_M,), tl.int32)
    if EARLY:
        cuda.gdc_wait()
    for first in range(0, splits, AT_ONCE):
        # Unrolled: their loads are on the way at once. A split that is not there changes nothing.
        for step in tl.static_range(AT_ONCE):
            split = first + step
            there = row_there & (split < splits)
            place = (head.to(tl.int64) * splits + split) * rows + row
            other_maximum = tl.load(states + place, mask=there, other=-float("inf"))
            other_total = tl.load(states + size + place, mask=there, other=0.0)
            other_seen = seen
            if FLAGGED:
                other_seen = tl.load(states + 2 * size + place, mask=there, other=0.0).to(tl.int32)
            part_at = parts + place[:, None] * VALUE_SIZE + value_dim[None, :]
            part = tl.load(part_at, mask=there[:, None] & value_dims[None, :], other=0.0)
            maximum, total, merged, seen = merge(
                maximum, total, merged, seen, other_maximum, other_total, part, other_seen, BINARY, FLAGGED
            )
    place = (batch * queries + query) * heads + own_head
    out_at = out + place[:, None] * VALUE_SIZE + value_dim[None, :]
    lse_at = lse + (batch * heads + own_head) * queries + query
    store_rows(out_at, lse_at, maximum, total, merged, row_there, value_dims, BINARY)
