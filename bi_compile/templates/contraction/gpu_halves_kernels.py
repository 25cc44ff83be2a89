"""Epilogues of both halves of a product, as of `silu(gate) * up` with one weight for the two, in Triton.

A tile is two, as many columns apart as the result has, summed side by side: their rows are read once.
"""

import triton
import triton.language as tl

from bi_compile.templates.contraction.gpu_grouped_kernels import _extents, _group_of
from bi_compile.templates.contraction.gpu_kernels import _tile
from bi_compile.templates.gpu.pieces import halves


@triton.jit
def _store(left, right, other, out, at, inside, EPILOGUE: tl.constexpr):
    """What the epilogue makes of two elements, which come rounded to the dtype of `other`, to out + at."""
    dtype = other.dtype.element_ty
    finished = EPILOGUE(left.to(dtype).to(tl.float32), right.to(dtype).to(tl.float32), other + at, inside)
    tl.store(out + at, finished.to(out.dtype.element_ty), mask=inside)


@triton.jit
def finish_halves(
    rounded, other, out, N, BLOCK: tl.constexpr, EPILOGUE: tl.constexpr
):  # fmt: skip
    """An epilogue of a product that is stored already, [rows, 2 N]; other and out: [rows, N]. One row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    at = rounded + 2 * row * N + columns
    left = tl.load(at, mask=inside, other=0.0)
    right = tl.load(at + N, mask=inside, other=0.0)
    _store(left, right, other, out, row * N + columns, inside, EPILOGUE)


@triton.jit
def _write(
    left, right, other, out, rows, column, row_in, N, EPILOGUE: tl.constexpr, PIECE: tl.constexpr
):  # fmt: skip
    """Finish two tiles and store the result, which begins at `column`, PIECE columns at a time."""
    if left.shape[1] > PIECE:
        first, second = halves(left)
        third, fourth = halves(right)
        _write(first, third, other, out, rows, column, row_in, N, EPILOGUE, PIECE)
        _write(second, fourth, other, out, rows, column + first.shape[1], row_in, N, EPILOGUE, PIECE)
    else:
        columns = column + tl.arange(0, left.shape[1])
        inside = row_in[:, None] & (columns < N)[None, :]
        at = rows.to(tl.int64)[:, None] * N + columns[None, :]
        _store(left, right, other, out, at, inside, EPILOGUE)


@triton.jit
def _chunk_of_halves(
    a, b, row, column, apart, first, begin, end,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, BY_COLUMN: tl.constexpr,
):  # fmt: skip
    """The chains over k = begin .. end-1 of two tiles `apart` columns from one another, transposed with SWAP.

    first: the row of b, as its descriptor has it, where the matrix begins.
    """
    left = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    right = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    for k in range(begin, end, BLOCK_K):
        x = a.load([row, k])
        y = b.load([first + column, k]) if BY_COLUMN else b.load([first + k, column])
        z = b.load([first + apart + column, k]) if BY_COLUMN else b.load([first + k, apart + column])
        if SWAP:
            left = tl.dot(y if BY_COLUMN else y.T, x.T, left, input_precision=PRECISION)
            right = tl.dot(z if BY_COLUMN else z.T, x.T, right, input_precision=PRECISION)
        else:
            left = tl.dot(x, y.T if BY_COLUMN else y, left, input_precision=PRECISION)
            right = tl.dot(x, z.T if BY_COLUMN else z, right, input_precision=PRECISION)
    return left, right


@triton.jit(do_not_specialize=["total", "groups"])
def halves_by_descriptors(
    a, b, offs, other, out, total, groups, N, K,
    GROUPS: tl.constexpr, CHUNK: tl.constexpr, CHUNKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr, SWAP: tl.constexpr, BY_COLUMN: tl.constexpr,
    EPILOGUE: tl.constexpr,
):  # fmt: skip
    """`grouped_rows_by_descriptors` for matrices of 2 N columns: persistent blocks.

    GROUPS: 0 for rows of one matrix, and offs is not read; other, out: contiguous [total, N].
    """
    if GROUPS:
        begins, ends = _extents(offs, groups, total, GROUPS)
        tiles_m = tl.sum(tl.cdiv(tl.maximum(ends - begins, 0), BLOCK_M), 0)
    else:
        tiles_m = tl.cdiv(total, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for piece in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = _tile(piece, tiles_m, tiles_n, GROUP_M)
        column = tile_n * BLOCK_N
        row = tile_m * BLOCK_M
        end = total
        first = 0
        length = K
        if GROUPS:
            group, row, end = _group_of(tile_m, begins, ends, GROUPS, BLOCK_M)
            first = group * (2 * N if BY_COLUMN else K)
            length = tl.where(group < groups, K, 0)
        if CHUNKED:
            left = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
            right = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
            for begin in range(0, length, CHUNK):
                chain, other_chain = _chunk_of_halves(
                    a, b, row, column, N, first, begin, tl.minimum(length, begin + CHUNK),
                    BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, BY_COLUMN,
                )  # fmt: skip
                left += chain
                right += other_chain
        else:
            left, right = _chunk_of_halves(
                a, b, row, column, N, first, 0, length,
                BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, BY_COLUMN,
            )  # fmt: skip
        if SWAP:
            left = tl.trans(left)
            right = tl.trans(right)
        rows = row + tl.arange(0, BLOCK_M)
        _write(left, right, other, out, rows, column, rows < end, N, EPILOGUE, PIECE)
