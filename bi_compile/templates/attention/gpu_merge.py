"""The states of splits that were walked in parallel, merged in the order of a walk in sequence.

A program merges one row and is one warp. The factors of its splits are worked out side by side; of their
parts a thread holds the same columns of all. What is left to be done in order is a chain of fused operations.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda

from bi_compile.templates.attention.gpu_arithmetic import factors, store_rows


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b)


@triton.jit
def _halves(x):
    """The first and the second half of the rows of a tile."""
    return tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2, x.shape[1])), (1, 2, 0)))


@triton.jit
def _chain(total, out, a, totals, parts):
    """total, out [1, D] after the splits of the tiles [S, D]; `totals` and `parts` are multiplied already."""
    if parts.shape[0] == 1:
        return tl.fma(total, a, totals), tl.fma(out, a, parts)
    else:
        a, next_a = _halves(a)
        totals, next_totals = _halves(totals)
        parts, next_parts = _halves(parts)
        total, out = _chain(total, out, a, totals, parts)
        return _chain(total, out, next_a, next_totals, next_parts)


@triton.jit(do_not_specialize=["queries", "heads", "kv_heads", "splits"])
def merge_splits(
    parts, states, out, lse, queries, heads, kv_heads, splits,
    VALUE_SIZE: tl.constexpr, VALUE_DIMS: tl.constexpr, GROUP: tl.constexpr, BINARY: tl.constexpr,
    FLAGGED: tl.constexpr, EARLY: tl.constexpr, SOON: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The states of all splits, in order, AT_ONCE side by side; parts, states, EARLY as in `attend`.

    SOON: the next kernel may be started as soon as all are there to be merged. Programs of many rows would
    leave it uneven places.
    """
    head, row = tl.program_id(0), tl.program_id(1)
    batch = (head // kv_heads).to(tl.int64)
    rows = queries * GROUP
    query = row // GROUP
    own_head = (head % kv_heads) * GROUP + row % GROUP
    value_dim = tl.arange(0, VALUE_DIMS)[None, :]
    size = tl.num_programs(0).to(tl.int64) * splits * rows
    place = head.to(tl.int64) * splits * rows + row
    maxima, totals, met = states + place, states + size + place, states + 2 * size + place
    parts_at = parts + place * VALUE_SIZE + value_dim
    maximum = tl.full((), -float("inf"), tl.float32)
    total, merged = tl.zeros((1, VALUE_DIMS), tl.float32), tl.zeros((1, VALUE_DIMS), tl.float32)
    if EARLY:
        cuda.gdc_wait()
    if SOON:
        # No sooner: programs of the next kernel would be spread unevenly, over what the last one leaves free.
        cuda.gdc_launch_dependents()
    for first in range(0, splits, AT_ONCE):
        split = first + tl.arange(0, AT_ONCE)
        # A split that is not there changes nothing.
        there = split < splits
        at = split.to(tl.int64) * rows
        part_there = there[:, None] & (value_dim < VALUE_SIZE)
        part = tl.load(parts_at + at[:, None] * VALUE_SIZE, mask=part_there, other=0.0)
        own_maximum = tl.load(maxima + at, mask=there, other=-float("inf"))
        own_total = tl.load(totals + at, mask=there, other=0.0)
        before = tl.load(maxima + at - rows, mask=there & (split > first), other=maximum)
        before = tl.associative_scan(before, 0, _greater)
        now, a, c = factors(before, own_maximum, BINARY)
        if FLAGGED:
            # As in `merge`: what is weighted by 0 leaves nothing where only masked keys were met. A row's
            # first split has met another, so that nothing is to be hidden of what came before.
            own_seen = tl.load(met + at, mask=there, other=0.0)
            part = tl.where(((c == 0) & (own_seen == 0))[:, None], 0.0, part)
        of_part = tl.broadcast_to((own_total * c)[:, None], part.shape)
        a = tl.broadcast_to(a[:, None], part.shape)
        total, merged = _chain(total, merged, a, of_part, part * c[:, None])
        maximum = tl.max(now, 0)
    one = tl.zeros((1,), tl.int32)
    place = (batch * queries + query) * heads + own_head
    lse_at = lse + (batch * heads + own_head) * queries + query
    store_rows(
        out + place * VALUE_SIZE + one, lse_at + one, maximum + one, tl.max(total, 1), 0, (merged,), one == 0,
        VALUE_SIZE, VALUE_DIMS, BINARY, False,
    )  # fmt: skip
