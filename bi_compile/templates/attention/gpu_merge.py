"""The states of splits that were walked in parallel, merged in the order of a walk in sequence."""

import triton
import triton.language as tl
from triton.language.extra import cuda

from bi_compile.templates.attention.gpu_arithmetic import merge, store_rows


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
    merged = (tl.zeros((BLOCK_M, VALUE_DIMS), tl.float32),)
    seen = tl.zeros((BLOCK_M,), tl.int32)
    if EARLY:
        cuda.gdc_wait()
    place = head.to(tl.int64) * splits * rows + row
    maxima, totals, met = states + place, states + size + place, states + 2 * size + place
    parts_at = parts + place[:, None] * VALUE_SIZE + value_dim[None, :]
    for first in range(0, splits, AT_ONCE):
        # Unrolled: their loads are on the way at once. A split that is not there changes nothing.
        for step in tl.static_range(AT_ONCE):
            there = row_there & (first + step < splits)
            other_maximum = tl.load(maxima, mask=there, other=-float("inf"))
            other_total = tl.load(totals, mask=there, other=0.0)
            other_seen = seen
            if FLAGGED:
                other_seen = tl.load(met, mask=there, other=0.0).to(tl.int32)
            part = tl.load(parts_at, mask=there[:, None] & value_dims[None, :], other=0.0)
            maxima, totals, met = maxima + rows, totals + rows, met + rows
            parts_at += rows * VALUE_SIZE
            maximum, total, merged, seen = merge(
                maximum, total, merged, seen, other_maximum, other_total, (part,), other_seen, BINARY, FLAGGED
            )
    place = (batch * queries + query) * heads + own_head
    lse_at = lse + (batch * heads + own_head) * queries + query
    store_rows(
        out + place * VALUE_SIZE, lse_at, maximum, total, 0, merged, row_there,
        VALUE_SIZE, VALUE_DIMS, BINARY, False,
    )  # fmt: skip
