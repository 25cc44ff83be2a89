"""Products of a block of keys in Triton: with queries, and of weights with values; whole or by pieces.

Each number is one chain along its inner dim, whether that is walked in one product or in several. For scalar
instructions, of which products of fp32 are made, a thread holds all that it multiplies: pieces keep that
within its registers.
"""

import triton
import triton.language as tl

from bi_compile.templates.attention.gpu_arithmetic import BLOCK, unwanted
from bi_compile.templates.gpu.pieces import halves


@triton.jit
def mapped_scores(q, k_maps, batch, kv_head, first):
    """Queries [M, D] times the keys from `first` on, read through tensor maps: [M, BLOCK].

    q: in one tile or in two, one beside the other, each with a map of its keys.
    """
    DIMS: tl.constexpr = q[0].shape[1]
    k = tl.reshape(k_maps[0].load([batch, kv_head, first, 0]), (BLOCK, DIMS)).T
    scores = tl.dot(q[0], k, input_precision="ieee")
    if len(q) > 1:
        k = tl.reshape(k_maps[1].load([batch, kv_head, first, DIMS]), (BLOCK, q[1].shape[1])).T
        scores = tl.dot(q[1], k, scores, input_precision="ieee")
    return scores


@triton.jit
def mapped_values(p, out, v_maps, batch, kv_head, first):
    """out [M, D] and weights [M, K] times the values from key `first` on, read through tensor maps.

    out: in one tile or in two, as the maps.
    """
    KEYS: tl.constexpr = p.shape[1]
    v = tl.reshape(v_maps[0].load([batch, kv_head, first, 0]), (KEYS, out[0].shape[1]))
    p = p.to(v.dtype)
    near = tl.dot(p, v, out[0], input_precision="ieee")
    if len(out) > 1:
        v = tl.reshape(v_maps[1].load([batch, kv_head, first, near.shape[1]]), (KEYS, out[1].shape[1]))
        return near, tl.dot(p, v, out[1], input_precision="ieee")
    else:
        return (near,)


@triton.jit
def scores_of(
    q, k_head, k_block, k_maps, batch, kv_head, rows, first, keys, q_step, k_step, k_stride, key_dims,
    nothing, SIZE: tl.constexpr, EVEN: tl.constexpr, MAPS: tl.constexpr,
):  # fmt: skip
    """Queries [M, D] times the keys from `first` on: [M, BLOCK].

    q: the queries, in one tile or in two, one beside the other, each with a map of its keys in k_maps; or
    where they are multiplied by pieces the addresses of the first; k_block: the offsets of one piece of the
    keys; q_step, k_step: from one piece to the next.
    """
    DIMS: tl.constexpr = q[0].shape[1]
    at = tl.cast(first, tl.int64) * k_stride
    there = first + tl.arange(0, BLOCK) < keys
    if q[0].dtype.is_ptr():
        scores = tl.zeros((q[0].shape[0], BLOCK), tl.float32)
        # Not unrolled: all queries would be read ahead of the walk, and kept in registers.
        PIECES: tl.constexpr = (SIZE + DIMS - 1) // DIMS
        for piece in range(nothing + PIECES):
            q_at, k_at = q[0] + piece * q_step, k_head + at + piece * k_step + k_block
            if EVEN:
                own = tl.load(q_at, mask=rows[:, None], other=0.0)
                k = tl.load(k_at, mask=there[None, :], other=0.0)
            else:
                dims = piece * DIMS + tl.arange(0, DIMS) < SIZE
                own = tl.load(q_at, mask=rows[:, None] & dims[None, :], other=0.0)
                k = tl.load(k_at, mask=dims[:, None] & there[None, :], other=0.0)
            scores = tl.dot(own, k, scores, input_precision="ieee")
        return scores
    elif MAPS:
        return mapped_scores(q, k_maps, batch, kv_head, first)
    elif EVEN:
        k = tl.load(k_head + at + k_block, mask=there[None, :], other=0.0)
        return tl.dot(q[0], k, input_precision="ieee")
    else:
        k = tl.load(k_head + at + k_block, mask=key_dims[:, None] & there[None, :], other=0.0)
        return tl.dot(q[0], k, input_precision="ieee")


@triton.jit
def values_from(v_head, v_block, first, keys, v_stride, value_dims, EVEN: tl.constexpr):
    """The values from key `first` on: [keys of v_block, D]."""
    KEYS: tl.constexpr = v_block.shape[0]
    at = v_head + tl.cast(first, tl.int64) * v_stride + v_block
    there = first + tl.arange(0, KEYS) < keys
    if EVEN:
        return tl.load(at, mask=there[:, None], other=0.0)
    else:
        return tl.load(at, mask=there[:, None] & value_dims[None, :], other=0.0)


@triton.jit
def take_in(
    p, counts, out, v_head, v_block, v_maps, batch, kv_head, first, keys, v_stride, value_dims,
    EVEN: tl.constexpr, MAPS: tl.constexpr, CAREFUL: tl.constexpr, SHORT: tl.constexpr,
):  # fmt: skip
    """out [M, D] and weights [M, K] times the values of K keys, as many at a time as v_block has.

    CAREFUL: values may be non-finite, and counts [M, K] tells which keys take part in a row. SHORT: what is
    multiplied is read when the product before has ended; else the assembler reads as far ahead as there are
    registers, and further.
    """
    if v_block.shape[0] < p.shape[1]:
        near, far = halves(p)
        near_counts, far_counts = counts, counts
        if CAREFUL:
            near_counts, far_counts = halves(counts)
        out = take_in(
            near, near_counts, out, v_head, v_block, v_maps, batch, kv_head, first, keys, v_stride,
            value_dims, EVEN, MAPS, CAREFUL, SHORT,
        )  # fmt: skip
        first += near.shape[1]
        # What lies beyond a branch is not read before it.
        if not SHORT or first < keys:
            out = take_in(
                far, far_counts, out, v_head, v_block, v_maps, batch, kv_head, first, keys, v_stride,
                value_dims, EVEN, MAPS, CAREFUL, SHORT,
            )  # fmt: skip
        return out
    elif MAPS:
        tl.static_assert(not CAREFUL)
        return mapped_values(p, out, v_maps, batch, kv_head, first)
    else:
        v = values_from(v_head, v_block, first, keys, v_stride, value_dims, EVEN)
        if CAREFUL:
            finite = tl.abs(v.to(tl.float32)) < float("inf")
            met = tl.where(finite, v, tl.zeros_like(v))
            strange = tl.max(tl.max(tl.where(finite, 0, 1), 1), 0)
            near = tl.dot(p.to(v.dtype), met, out[0], input_precision="ieee")
            # Mostly all are finite: then they add 0.
            other = tl.zeros(near.shape, tl.float32)
            if strange != 0:
                # Read again: what waits for the rare case takes registers from the other.
                v = values_from(v_head, v_block, first, keys, v_stride, value_dims, EVEN)
                other = unwanted(p, counts, v)
            return (near + other,)
        else:
            return (tl.dot(p.to(v.dtype), v, out[0], input_precision="ieee"),)
