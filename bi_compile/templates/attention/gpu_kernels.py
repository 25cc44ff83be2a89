"""Attention in Triton: splits of the keys walked in sequence or in parallel, one tree for every row.

A tile holds BLOCK_M rows of the query heads that share one kv head: row r is query r // GROUP of head r %
GROUP. Neither the tile nor the number of warps enters a row's bits: products are chains over their inner
dim whatever the tile (docs/gpu-order.md), and the sum of a block's weights is an explicit fold.

Blocks and splits are counted from a row's first visible key. A tile whose rows do not share it is left to
the APART kernel: its rows are queries BLOCK apart, so that in a sliding window the blocks of one are those of
all. What met numbers that are not finite is left to the CAREFUL kernel.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda

from bi_compile.templates.attention.gpu_arithmetic import BLOCK, split_begin, store_rows
from bi_compile.templates.attention.gpu_few import walk_few
from bi_compile.templates.attention.gpu_late import walk_late
from bi_compile.templates.attention.gpu_places import (
    SEVERAL,
    STRANGE,
    last_step,
    paired,
    place_again,
    place_of,
    rows_of,
)
from bi_compile.templates.attention.gpu_walk import walk


@triton.jit
def _whole(stride, LINE: tl.constexpr):
    return stride // LINE * LINE


@triton.jit
def _strange(out):
    """int1 [M]: whether anything in a row of tiles is not finite, or so large that a sum of it is not."""
    strange = tl.sum(out[0], 1) * 0.0 != 0
    if len(out) > 1:
        strange |= tl.sum(out[1], 1) * 0.0 != 0
    return strange


@triton.jit
def _store(
    out, lse, parts, states, head, tile, split, piece, rows, maximum, total, found, seen,
    queries, heads, kv_heads, all_heads, splits, value_dims,
    VALUE_SIZE: tl.constexpr, GROUP: tl.constexpr, BINARY: tl.constexpr, PARALLEL: tl.constexpr,
    FLAGGED: tl.constexpr, APART: tl.constexpr, CAREFUL: tl.constexpr, ALL: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """The state of these rows of a tile, ALL or some, or what follows from it."""
    BLOCK_M: tl.constexpr = rows.shape[0]
    batch, kv_head = (head // kv_heads).to(tl.int64), head % kv_heads
    row, query, own_head = rows_of(tile, kv_head, BLOCK_M, GROUP, APART)
    if ALL:
        rows = query < queries
    VALUE_DIMS: tl.constexpr = value_dims.shape[0]
    value_dim = piece * VALUE_DIMS + tl.arange(0, VALUE_DIMS)
    if PARALLEL:
        rows_of_head = queries * GROUP
        place = (head.to(tl.int64) * splits + split) * rows_of_head + row
        size = all_heads.to(tl.int64) * splits * rows_of_head
        tl.store(states + place, maximum, mask=rows)
        tl.store(states + size + place, total, mask=rows)
        if FLAGGED:
            tl.store(states + 2 * size + place, seen.to(tl.float32), mask=rows)
        parts_at = parts + place[:, None] * VALUE_SIZE + value_dim[None, :]
        tl.store(parts_at, found[0], mask=rows[:, None] & value_dims[None, :])
        if len(found) > 1:
            rest = VALUE_DIMS + tl.arange(0, found[1].shape[1])
            rest_at = parts + place[:, None] * VALUE_SIZE + rest[None, :]
            tl.store(rest_at, found[1], mask=rows[:, None] & (rest < VALUE_SIZE)[None, :])
    else:
        place = (batch * queries + query) * heads + own_head
        lse_at = lse + (batch * heads + own_head) * queries + query
        finite: tl.constexpr = FLAGGED and not CAREFUL
        first = piece * VALUE_DIMS
        store_rows(
            out + place * VALUE_SIZE, lse_at, maximum, total, first, found, rows,
            VALUE_SIZE, COLUMNS, BINARY, finite,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "queries", "keys", "heads", "kv_heads", "all_heads", "splits", "tiles", "together", "programs",
    ]
)  # fmt: skip
def attend(
    q, k, v, k_map, k_rest, v_map, v_rest, mask, begins, wholes, ends, out, lse, parts, states, flags, held,
    queries, keys, heads, kv_heads, all_heads, splits, tiles, together, programs,
    before, softcap, scale, unit, least, lowest, zero,
    q_batch, q_head, q_row, q_dim, k_batch, k_head, k_row, k_dim, v_batch, v_head, v_row, v_dim,
    mask_batch, mask_head, mask_row, bound_batch, bound_head, bound_row,
    SIZE: tl.constexpr, VALUE_SIZE: tl.constexpr, DIMS: tl.constexpr, REST: tl.constexpr,
    VALUE_DIMS: tl.constexpr, VALUE_REST: tl.constexpr, VALUE_KEYS: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BINARY: tl.constexpr,
    NATURAL: tl.constexpr, CAPPED: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
    PARALLEL: tl.constexpr, ONE_SPLIT: tl.constexpr, MAPS: tl.constexpr, FLAGGED: tl.constexpr,
    APART: tl.constexpr, CAREFUL: tl.constexpr, ROWS_OF_TILE: tl.constexpr,
    IN_TURNS: tl.constexpr, EARLY: tl.constexpr, FEW: tl.constexpr, PAIRED: tl.constexpr,
    STAGES: tl.constexpr, HELD: tl.constexpr, LINE: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """One tile over all splits or, PARALLEL, over one of them, whose state goes to `parts` and `states`.

    DIMS, VALUE_DIMS: columns of keys and values that are multiplied at a time, by pieces; but where REST or
    VALUE_REST, so many follow, and that is all. k_map to v_rest: where MAPS, tensor maps of these.

    FLAGGED: leaves in flags [splits, tiles, all_heads] whether the tile of ROWS_OF_TILE rows holds anything
    non-finite or rows of several first keys. APART: does the rows of the latter. CAREFUL: does the former
    anew, BLOCK_M rows at a time, in any number of programs. FEW: by `walk_few`, so many blocks in a step.
    PAIRED: of short splits two after each other. LATE: by `walk_late`.
    LINE: strides of rows are multiples of so many numbers, 16 bytes, where these are not multiples of 16, as
    the compiler knows by itself. EARLY: the next kernel may be started before this one ends, and this one
    before the last.

    all_heads: batch * kv_heads. IN_TURNS: the tiles of 2**together heads come in turns, the longest first.
    parts [all_heads, splits, rows, VALUE_SIZE], states [3, all_heads, splits, rows]: maximum, sum and whether
    a key was met that is not masked.
    """
    if LINE > 1:
        # Loads of 16 bytes: else each number of a tile would take an address of its own.
        q_batch, q_head, q_row = _whole(q_batch, LINE), _whole(q_head, LINE), _whole(q_row, LINE)
        k_batch, k_head, k_row = _whole(k_batch, LINE), _whole(k_head, LINE), _whole(k_row, LINE)
        v_batch, v_head, v_row = _whole(v_batch, LINE), _whole(v_head, LINE), _whole(v_row, LINE)
    if EARLY:
        cuda.gdc_launch_dependents()
        if CAREFUL or APART:
            cuda.gdc_wait()
    COLUMNS: tl.constexpr = VALUE_DIMS + VALUE_REST
    PARTS_OF_TILE: tl.constexpr = (ROWS_OF_TILE + BLOCK_M - 1) // BLOCK_M if CAREFUL else 1
    VALUE_PIECES: tl.constexpr = (VALUE_SIZE + COLUMNS - 1) // COLUMNS
    first_turn, end_turn = 0, VALUE_PIECES
    if CAREFUL:
        last = last_step(flags, programs, PARTS_OF_TILE * VALUE_PIECES)
        if last < 0:
            return
        # The last one first: with a causal mask it is the longest. Up to 0: a bound would take a register.
        first_turn, end_turn = -1 - last // tl.num_programs(0), 0
    TURNS: tl.constexpr = IN_TURNS and not (APART or CAREFUL)
    ways = tl.num_programs(1) if PAIRED else splits
    head, tile, split = place_of(0, ways, tiles, together, all_heads, PARALLEL, APART, TURNS)
    pair = split
    if PAIRED:
        pair, end_turn = paired(split)
    if TURNS and head >= all_heads:
        return
    dim, value_dim = tl.arange(0, DIMS), tl.arange(0, VALUE_DIMS)
    key = tl.arange(0, BLOCK)
    key_dims = dim < SIZE
    # Offsets, not addresses: a tile of those takes twice the registers.
    k_block = dim[:, None] * k_dim + key[None, :] * k_row
    v_block = tl.arange(0, VALUE_KEYS)[:, None] * v_row + value_dim[None, :] * v_dim
    EVEN: tl.constexpr = SIZE % DIMS == 0 and VALUE_SIZE % VALUE_DIMS == 0
    # A zero that the compiler does not know: what is worked out with it after the walk is not kept during it.
    # Its bits, where registers are short: a cast would be kept.
    LARGE: tl.constexpr = HELD > 0 or (BINARY and COLUMNS > 128 and not (APART or CAREFUL))
    nothing = tl.cast(zero, tl.int32, bitcast=LARGE)
    SPLITS: tl.constexpr = not (PARALLEL or ONE_SPLIT)
    # Where registers are short nothing that a step could work out again is kept in them.
    SHORT: tl.constexpr = CAREFUL or (not BINARY and VALUE_DIMS > 128)
    for turn in tl.range(first_turn, end_turn, disable_licm=SHORT):
        wanted, piece = 1, turn if VALUE_PIECES > 1 else 0
        if CAREFUL:
            number, head, tile, split, piece = place_again(
                turn, tiles, all_heads, PARTS_OF_TILE, VALUE_PIECES
            )
            wanted = tl.load(flags + number) & STRANGE
        if PAIRED:
            split = pair + turn
        batch, kv_head = head // kv_heads, head % kv_heads
        row, query, own_head = rows_of(tile, kv_head, BLOCK_M, GROUP, APART)
        left = query < queries
        flags_of_rows = flags
        if APART:
            flags_of_rows = flags + (split * tiles + row // ROWS_OF_TILE) * all_heads + head
            left = left & ((tl.load(flags_of_rows, mask=left, other=0) & SEVERAL) != 0)
            wanted = tl.max(left.to(tl.int32), 0)
        if wanted != 0:
            far_batch = batch.to(tl.int64)
            value_dims = piece * VALUE_DIMS + value_dim < VALUE_SIZE
            k_of_head = k + far_batch * k_batch + kv_head.to(tl.int64) * k_head
            v_of_head = v + far_batch * v_batch + kv_head.to(tl.int64) * v_head + piece * VALUE_DIMS * v_dim
            q_at = own_head.to(tl.int64) * q_head + query.to(tl.int64) * q_row
            q_rows = q + far_batch * q_batch + q_at
            q_at = q_rows[:, None] + dim[None, :] * q_dim
            if EARLY and not (CAREFUL or APART):
                cuda.gdc_wait()
            k_maps, v_maps, tile_q = (k_map, k_rest), (v_map, v_rest), (q_at,)
            if SIZE <= DIMS + REST:
                tile_q = (tl.load(q_at, mask=left[:, None] & key_dims[None, :], other=0.0),)
            if REST:
                rest = DIMS + tl.arange(0, REST)
                rest_at = q_rows[:, None] + rest[None, :] * q_dim
                tile_q += (tl.load(rest_at, mask=left[:, None] & (rest < SIZE)[None, :], other=0.0),)
            mask_of = (mask, mask_batch, mask_head, mask_row, tile * BLOCK_M, GROUP)
            if APART:
                mask_of = mask + far_batch * mask_batch + own_head.to(tl.int64) * mask_head
                mask_of += query.to(tl.int64) * mask_row

            # Each row's first key, -1 where it has none; where the keys before are all there; and its end.
            own_first = tl.zeros((BLOCK_M,), tl.int32)
            own_end = tl.zeros((BLOCK_M,), tl.int32) + keys
            if CAUSAL:
                own_end = tl.minimum(own_end, query + 1)
            own_whole = own_end
            end, whole = keys, keys
            if CAUSAL:
                # Those of the tile's last row and of its first.
                end = tl.minimum(keys, tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1, queries))
                whole = tl.minimum(keys, tile * BLOCK_M // GROUP + 1)
            if MASK != 0:
                bound = far_batch * bound_batch + own_head * bound_head + query * bound_row
                own_first = tl.load(begins + bound, mask=left, other=-1)
                own_whole = tl.load(wholes + bound, mask=left, other=0)
                own_end = tl.load(ends + bound, mask=left, other=0)
                left = left & (own_first >= 0)
            if MASK != 0 and (APART or CAREFUL):
                while tl.max(left.to(tl.int32), 0) > 0:
                    first_key = tl.min(tl.where(left, own_first, keys), 0)
                    away = (own_first - first_key) % BLOCK
                    rows = left & (away == 0)
                    left = left & (away != 0)
                    low, high = own_first, own_end
                    if PARALLEL:
                        low = own_first + split_begin(split)
                        high = tl.minimum(high, own_first + split_begin(split + 1))
                    begin = tl.min(tl.where(rows, low, keys), 0)
                    end = tl.max(tl.where(rows, high, 0), 0)
                    whole_begin = tl.max(tl.where(rows, low, 0), 0)
                    whole_end = tl.min(tl.where(rows, tl.minimum(own_whole, high), keys), 0)
                    maximum, total, found, seen = walk(
                        tile_q, k_of_head, v_of_head, k_block, v_block, k_maps, v_maps, batch, kv_head,
                        mask_of, rows, own_first, low, high, begin, end, whole_begin, whole_end,
                        keys, DIMS * q_dim, DIMS * k_dim, k_row, v_row,
                        before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
                        SIZE, BINARY, NATURAL, CAPPED, MASK, EVEN, MAPS, SPLITS, CAREFUL, True, STAGES,
                        held, 0, VALUE_REST,
                    )  # fmt: skip
                    if not CAREFUL:
                        tl.store(flags_of_rows, SEVERAL | STRANGE, mask=rows & _strange(found))
                    # first_key: within the loop.
                    again = first_key & nothing
                    if CAREFUL:
                        _, head, tile, split, piece = place_again(
                            turn + again, tiles, all_heads, PARTS_OF_TILE, VALUE_PIECES
                        )
                    else:
                        head, tile, split = place_of(
                            again, splits, tiles, together, all_heads, PARALLEL, APART, TURNS
                        )
                    _store(
                        out, lse, parts, states, head, tile, split, piece, rows, maximum, total, found, seen,
                        queries, heads, kv_heads, all_heads, splits, value_dims,
                        VALUE_SIZE, GROUP, BINARY, PARALLEL, FLAGGED, APART, CAREFUL, False, VALUE_DIMS,
                    )  # fmt: skip
            else:
                begin = tl.full((), 0, tl.int32)
                several = 0
                if MASK != 0:
                    # Rows that are not there have no say.
                    whole = tl.min(tl.where(query < queries, own_whole, keys), 0)
                    begin = tl.min(tl.where(left, own_first, keys), 0)
                    several = (tl.max(tl.where(left, own_first, -1), 0) > begin).to(tl.int32)
                    end = tl.where(several == 0, tl.max(tl.where(left, own_end, 0), 0), 0)
                if FLAGGED and not CAREFUL:
                    # Before the walk, which need not keep it then: rows that are not walked are not strange.
                    number = (split * tiles + tile) * all_heads + head
                    tl.store(flags + number, several * SEVERAL, mask=piece == 0)
                first_key = begin
                if PARALLEL:
                    begin = first_key + split_begin(split)
                    end = tl.minimum(end, first_key + split_begin(split + 1))
                if FEW:
                    maximum, total, found, seen = walk_few(
                        tile_q[0], k_map, v_map, batch, kv_head, left, own_end, begin, end, whole,
                        before, softcap, scale, VALUE_DIMS, BINARY, NATURAL, CAPPED, FEW, STAGES,
                    )  # fmt: skip
                elif LATE:
                    maximum, total, found, seen = walk_late(
                        tile_q[0], k_map, v_map, batch, kv_head, tile, queries, keys, end, scale, zero,
                        BLOCK_M, VALUE_DIMS, GROUP, CAUSAL, STAGES, (held, tiles, together), HELD,
                    )  # fmt: skip
                else:
                    maximum, total, found, seen = walk(
                        tile_q, k_of_head, v_of_head, k_block, v_block, k_maps, v_maps, batch, kv_head,
                        mask_of, left, first_key, own_first, own_end, begin, end, begin, whole,
                        keys, DIMS * q_dim, DIMS * k_dim, k_row, v_row,
                        before, softcap, scale, unit, least, lowest, zero, key_dims, value_dims,
                        SIZE, BINARY, NATURAL, CAPPED, MASK, EVEN, MAPS, SPLITS, CAREFUL, False, STAGES,
                        (held, tiles, together), HELD, VALUE_REST,
                    )  # fmt: skip
                if CAREFUL:
                    _, head, tile, split, piece = place_again(
                        turn + nothing, tiles, all_heads, PARTS_OF_TILE, VALUE_PIECES
                    )
                else:
                    head, tile, split = place_of(
                        nothing, ways, tiles, together, all_heads, PARALLEL, APART, TURNS, LARGE and EARLY
                    )
                    if PAIRED:
                        split = pair + turn
                if FLAGGED and not CAREFUL:
                    # A weight of 0 may have met a NaN or an infinity; sums of one too far are NaN by now.
                    number = (split * tiles + tile) * all_heads + head + tl.zeros((BLOCK_M,), tl.int32)
                    tl.store(flags + number, STRANGE, mask=_strange(found))
                _store(
                    out, lse, parts, states, head, tile, split, piece, left, maximum, total, found, seen,
                    queries, heads, kv_heads, all_heads, splits, value_dims,
                    VALUE_SIZE, GROUP, BINARY, PARALLEL, FLAGGED, APART, CAREFUL, True,
                    64 if HELD else VALUE_DIMS,
                )  # fmt: skip
