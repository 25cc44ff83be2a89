"""Products of groups in Triton: the tiles of `gpu_kernels`, each within one group.

Where the groups end is read on the device: as many tiles are launched as there may be, and every program
finds its group among the ends. Neither the ends nor the number of groups is part of the tree.
"""

import triton
import triton.language as tl

from bi_compile.templates.contraction.gpu_kernels import _chunk, _store, _tile, _total_in_double
from bi_compile.templates.gpu.pieces import halves


@triton.jit
def _extents(offs, groups, total, GROUPS: tl.constexpr):
    """[GROUPS] beginnings and ends; what lies behind the last group is one more, and those beyond are empty.

    GROUPS: a power of two above `groups`. total: the extent that is cut into groups.
    """
    group = tl.arange(0, GROUPS)
    end = tl.load(offs + group, mask=group < groups, other=0).to(tl.int32)
    end = tl.where(group < groups, tl.minimum(end, total), total)
    begin = tl.load(offs + group - 1, mask=(group > 0) & (group <= groups), other=0).to(tl.int32)
    begin = tl.where(group <= groups, begin, total)
    return begin, end


@triton.jit
def _at(x, group, GROUPS: tl.constexpr):
    """x[group]"""
    return tl.sum(tl.where(tl.arange(0, GROUPS) == group, x, 0), 0)


@triton.jit
def _group_of(tile, begin, end, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """The group of a tile, where the tile begins, and where the group ends; nothing is in a tile too many."""
    tiles = tl.cdiv(tl.maximum(end - begin, 0), BLOCK)
    before = tl.cumsum(tiles, 0) <= tile
    group = tl.sum(before.to(tl.int32), 0)
    own = tile - tl.sum(tl.where(before, tiles, 0), 0)
    return group, _at(begin, group, GROUPS) + own * BLOCK, _at(end, group, GROUPS)


@triton.jit
def _write(
    total, other, out, rows, column, row_in, N, out_row, EPILOGUE: tl.constexpr, PIECE: tl.constexpr
):  # fmt: skip
    """Store a tile that begins at `column`, PIECE columns at a time: so many addresses fit registers.

    EPILOGUE, other: as in `gpu_kernels`, of the shape and strides of out.
    """
    if total.shape[1] > PIECE:
        left, right = halves(total)
        _write(left, other, out, rows, column, row_in, N, out_row, EPILOGUE, PIECE)
        _write(right, other, out, rows, column + left.shape[1], row_in, N, out_row, EPILOGUE, PIECE)
    else:
        columns = column + tl.arange(0, total.shape[1])
        inside = row_in[:, None] & (columns < N)[None, :]
        _store(total, other, out, rows.to(tl.int64)[:, None] * out_row + columns[None, :], inside, EPILOGUE)


@triton.jit(do_not_specialize=["total", "groups", "tiles_m", "tiles_n"])
def grouped_product(
    a, b, offs, other, out, total, groups, M, N, K, tiles_m, tiles_n,
    a_group, a_row, a_k, b_group, b_k, b_column, out_group, out_row,
    CUT: tl.constexpr, GROUPS: tl.constexpr, CHUNK: tl.constexpr, CHUNKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, PIECE: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, EVEN_K: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """One tile of one group, any strides.

    CUT: the extent that the groups cut, `total` long: "M", "N" or "K"; its own argument is not read then.
    tiles_m, tiles_n: of all groups together at most, with CUT "K" of each.
    CHUNKED: K may be longer than CHUNK.
    """
    begins, ends = _extents(offs, groups, total, GROUPS)
    index = tl.program_id(0)
    tile_m, tile_n = _tile(index % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP_M)
    row = tile_m * BLOCK_M
    column = tile_n * BLOCK_N
    length = K
    if CUT == "M":
        group, row, M = _group_of(tile_m, begins, ends, GROUPS, BLOCK_M)
        # There is no matrix for what lies behind the last group: zeros.
        length = tl.where(group < groups, K, 0)
    elif CUT == "N":
        group, column, N = _group_of(tile_n, begins, ends, GROUPS, BLOCK_N)
        length = tl.where(group < groups, K, 0)
    else:
        group = index // (tiles_m * tiles_n)
        begin = _at(begins, group, GROUPS)
        length = tl.maximum(_at(ends, group, GROUPS) - begin, 0)
        a += begin.to(tl.int64) * a_k
        b += begin.to(tl.int64) * b_k
    a += group.to(tl.int64) * a_group
    b += group.to(tl.int64) * b_group
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    row_in = rows < M
    column_in = columns < N
    if PRECISION == "fma":
        result = _total_in_double(
            a + rows.to(tl.int64) * a_row, b + columns.to(tl.int64) * b_column, row_in, column_in, length,
            a_k, b_k, CHUNK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        if CHUNKED:
            result = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
            for begin in range(0, length, CHUNK):
                result += _chunk(
                    a, b, rows, columns, row_in, column_in, begin, tl.minimum(length, begin + CHUNK),
                    a_row, a_k, b_k, b_column,
                    BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, EVEN_K,
                )  # fmt: skip
        else:
            result = _chunk(
                a, b, rows, columns, row_in, column_in, 0, length, a_row, a_k, b_k, b_column,
                BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, EVEN_K,
            )  # fmt: skip
        if SWAP:
            result = tl.trans(result)
    first = group.to(tl.int64) * out_group
    _write(result, other + first, out + first, rows, column, row_in, N, out_row, EPILOGUE, PIECE)


@triton.jit
def _chunk_of_rows(
    a, b, row, column, group, begin, end, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, BY_COLUMN: tl.constexpr,
):  # fmt: skip
    """`_chunk` for descriptors: the rows of a and of b that follow on the tile are another group's."""
    total = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    for k in range(begin, end, BLOCK_K):
        x = a.load([row, k])
        y = b.load([group * N + column, k]) if BY_COLUMN else b.load([group * K + k, column])
        if SWAP:
            total = tl.dot(y if BY_COLUMN else y.T, x.T, total, input_precision=PRECISION)
        else:
            total = tl.dot(x, y.T if BY_COLUMN else y, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["total", "groups"])
def grouped_rows_by_descriptors(
    a, b, offs, other, out, total, groups, N, K,
    GROUPS: tl.constexpr, CHUNK: tl.constexpr, CHUNKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr, SWAP: tl.constexpr, BY_COLUMN: tl.constexpr,
    EPILOGUE: tl.constexpr,
):  # fmt: skip
    """Groups of rows whose operands the tensor memory accelerator can read: persistent blocks.

    a: descriptor of [total, K]; b: of [groups * N, K] with BY_COLUMN, else of [groups * K, N], K then in
    whole blocks; out: contiguous [total, N].
    """
    begins, ends = _extents(offs, groups, total, GROUPS)
    tiles_m = tl.sum(tl.cdiv(tl.maximum(ends - begins, 0), BLOCK_M), 0)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for piece in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        tile_m, tile_n = _tile(piece, tiles_m, tiles_n, GROUP_M)
        group, row, end = _group_of(tile_m, begins, ends, GROUPS, BLOCK_M)
        column = tile_n * BLOCK_N
        length = tl.where(group < groups, K, 0)
        if CHUNKED:
            result = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
            for begin in range(0, length, CHUNK):
                result += _chunk_of_rows(
                    a, b, row, column, group, begin, tl.minimum(length, begin + CHUNK), N, K,
                    BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, BY_COLUMN,
                )  # fmt: skip
        else:
            result = _chunk_of_rows(
                a, b, row, column, group, 0, length, N, K,
                BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, BY_COLUMN,
            )  # fmt: skip
        if SWAP:
            result = tl.trans(result)
        rows = row + tl.arange(0, BLOCK_M)
        _write(result, other, out, rows, column, rows < end, N, N, EPILOGUE, PIECE)
