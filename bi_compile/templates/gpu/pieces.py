"""Large tiles in pieces: what is worked out for each element of a tile at once need not fit registers.

A sum by quarters is one of several chunks, of which registers do not hold the sum beside a chunk's: its left
half, the quarter beside it and, in device memory while a chunk is summed, the last quarter.
"""

import triton
import triton.language as tl


@triton.jit
def halves(x):
    """The left and the right half of the columns of a block, or of a row of them."""
    if len(x.shape) == 1:
        return tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2)), (1, 0)))
    else:
        return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def as_held(x):
    """A block [M, D] of a sum of the tensor core as [D // 8, 8 * M], where what a thread holds lies together.

    So it is stored and loaded in 16 bytes a thread, and none of it goes to another thread.
    """
    M: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    x = tl.permute(tl.reshape(x, (M // 16, 2, 8, D // 16, 2, 4, 2)), (1, 3, 0, 2, 5, 4, 6))
    return tl.reshape(x, (D // 8, M * 8))


@triton.jit
def from_held(x):
    """The block that `as_held` made x of."""
    M: tl.constexpr = x.shape[1] // 8
    D: tl.constexpr = x.shape[0] * 8
    x = tl.permute(tl.reshape(x, (2, D // 16, M // 16, 8, 4, 2, 2)), (2, 0, 3, 1, 5, 4, 6))
    return tl.reshape(x, (M, D))


@triton.jit
def begun_by_quarters(waiting, M: tl.constexpr, D: tl.constexpr):
    """Zeros for a sum [M, D] by quarters: half, quarter, and where the last one is kept for this program.

    waiting: fp32 [programs, M * D / 4].
    """
    at = tl.arange(0, D // 32)[:, None] * (8 * M) + tl.arange(0, 8 * M)[None, :]
    kept = waiting + tl.program_id(0) * (M * D // 4) + at
    tl.store(kept, tl.zeros((D // 32, 8 * M), tl.float32))
    return tl.zeros((M, D // 2), tl.float32), tl.zeros((M, D // 4), tl.float32), kept


@triton.jit
def added_by_quarters(half, quarter, kept, chunk):
    """The half and the quarter after a chunk [M, D], whose last quarter is added to what is kept."""
    left, right = halves(chunk)
    half += left
    near, far = halves(right)
    quarter += near
    # Last: the registers of the others are free by then.
    tl.store(kept, tl.load(kept) + as_held(far))
    return half, quarter


@triton.jit
def joined(near, far):
    """The block [M, 2 * D] that `halves` took apart."""
    return tl.reshape(tl.permute(tl.join(near, far), (0, 2, 1)), (near.shape[0], 2 * near.shape[1]))


@triton.jit
def held_at(held, M: tl.constexpr, D: tl.constexpr):
    """Addresses of a block [M, D] as `as_held` makes it."""
    return held + tl.arange(0, D // 8)[:, None] * (8 * M) + tl.arange(0, 8 * M)[None, :]
