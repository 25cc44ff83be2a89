"""The tree of every row reduction (`numerics`) in Triton: what cpu/row_tree.h is for the CPU kernels.

A program holds a block of accumulators [ROWS, CHUNKS, LANES] and walks the steps of all chunks together. Then
lanes fold in halves and chunks pairwise, always two by two: a longer reduction would be summed in an
order that follows the number of warps. So ROWS, CHUNKS (a power of two) and the number of warps are
free. Absent elements enter as the identity, which changes no bit: a lane that started at +0 is never -0.
"""

import triton
import triton.language as tl

from bi_compile.numerics import REDUCTION_CHUNK, REDUCTION_LANES

LANES = tl.constexpr(REDUCTION_LANES)
CHUNK = tl.constexpr(REDUCTION_CHUNK)


@triton.jit
def lane_index(CHUNKS: tl.constexpr):
    """[1, CHUNKS, LANES]: the elements of step 0. Step s adds s * LANES."""
    chunk = tl.arange(0, CHUNKS)[None, :, None]
    lane = tl.arange(0, LANES)[None, None, :]
    return chunk * CHUNK + lane


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit
def _pair(x, axis: tl.constexpr, PRODUCT: tl.constexpr):
    """Two operands in one axis: their order does not matter."""
    if PRODUCT:
        return tl.reduce(x, axis, _multiply)
    else:
        return tl.sum(x, axis)


@triton.jit
def fold_chunks(leaves, PRODUCT: tl.constexpr = False):
    """[ROWS, CHUNKS] -> [ROWS]: the balanced tree over neighbours."""
    ROWS: tl.constexpr = leaves.shape[0]
    CHUNKS: tl.constexpr = leaves.shape[1]
    if CHUNKS == 1:
        return tl.reshape(leaves, (ROWS,))
    else:
        # A split brings all chunks to one thread at once; reductions of pairs go through memory each time.
        left, right = tl.split(tl.reshape(leaves, (ROWS, CHUNKS // 2, 2)))
        return fold_chunks(left * right if PRODUCT else left + right, PRODUCT)


@triton.jit
def fold_lanes(lanes, PRODUCT: tl.constexpr = False):
    """[ROWS, CHUNKS, lanes] -> [ROWS, CHUNKS]: lane j takes in lane j + half, then by half as many."""
    ROWS: tl.constexpr = lanes.shape[0]
    CHUNKS: tl.constexpr = lanes.shape[1]
    COUNT: tl.constexpr = lanes.shape[2]
    if COUNT == 1:
        return tl.reshape(lanes, (ROWS, CHUNKS))
    else:
        return fold_lanes(_pair(tl.reshape(lanes, (ROWS, CHUNKS, 2, COUNT // 2)), 2, PRODUCT), PRODUCT)


@triton.jit
def fold(lanes, PRODUCT: tl.constexpr = False):
    """[ROWS, CHUNKS, LANES] -> [ROWS]."""
    return everywhere(fold_chunks(fold_lanes(lanes, PRODUCT), PRODUCT))


@triton.jit
def everywhere(x):
    """x of shape [ROWS]. A single number is made a scalar, which all threads have, whatever their layout."""
    if x.shape[0] == 1:
        return tl.full((1,), tl.sum(x, 0), x.dtype)
    else:
        return x


@triton.jit
def row_offset(row, size, outer, inner, TWO: tl.constexpr):
    """Where a row begins; `size` is that of the inner of two kept dims."""
    row = row.to(tl.int64)
    if TWO:
        return (row // size) * outer + (row % size) * inner
    else:
        return row * inner


@triton.jit
def element_offset(i, size, outer, inner, TWO: tl.constexpr, WIDE: tl.constexpr):
    """Where element i lies within its row."""
    if WIDE:
        i = i.to(tl.int64)
    if TWO:
        return (i // size) * outer + (i % size) * inner
    else:
        return i * inner


@triton.jit
def inside(first, step, n, FULL: tl.constexpr):
    """Whether the elements of a step lie within rows of n. FULL: chunks are full or absent, in all steps."""
    if FULL:
        return first < n
    else:
        return first + step * LANES < n


@triton.jit
def load(at, there, other: tl.constexpr, WHOLE: tl.constexpr):
    """Elements that are `there`, `other` for those that are not; WHOLE: all are."""
    if WHOLE:
        return tl.load(at)
    else:
        return tl.load(at, mask=there, other=other)


@triton.jit
def store(at, value, there, WHOLE: tl.constexpr):
    """The other way round."""
    if WHOLE:
        tl.store(at, value)
    else:
        tl.store(at, value, mask=there)
