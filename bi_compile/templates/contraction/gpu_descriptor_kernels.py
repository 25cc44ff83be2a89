"""Matrix products in Triton whose operands are read by descriptors; see `gpu_kernels`."""

import triton
import triton.language as tl

from bi_compile.templates.contraction.gpu_kernels import _tile, _write
from bi_compile.templates.gpu.pieces import added_by_quarters, begun_by_quarters, from_held


@triton.jit
def _chunk_by_descriptors(
    a, b, b_more, row, column, begin, end,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, MORE: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, BY_COLUMN: tl.constexpr,
):  # fmt: skip
    """`gpu_kernels._chunk` for descriptors, which read zeros outside; two tiles side by side if MORE > 0."""
    total = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    more = tl.zeros((BLOCK_M, MORE if MORE else 1), tl.float32)
    for k in range(begin, end, BLOCK_K):
        x = a.load([row, k])
        if SWAP:
            y = b.load([column, k]) if BY_COLUMN else b.load([k, column]).T
            total = tl.dot(y, x.T, total, input_precision=PRECISION)
        else:
            y = b.load([column, k]).T if BY_COLUMN else b.load([k, column])
            total = tl.dot(x, y, total, input_precision=PRECISION)
        if MORE:
            next = column + BLOCK_N
            z = b_more.load([next, k]).T if BY_COLUMN else b_more.load([k, next])
            more = tl.dot(x, z, more, input_precision=PRECISION)
    return total, more


@triton.jit(do_not_specialize=["M", "tiles", "tiles_m", "programs"])
def product_by_descriptors(
    a, b, b_more, out, c, other, waiting, tiles, tiles_m, tiles_n, programs,
    M, N, K, alpha, beta, c_row, c_column,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, MORE: tl.constexpr,
    GROUP_M: tl.constexpr, PIECE: tl.constexpr, WAITS: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, BY_COLUMN: tl.constexpr,
    SCALE: tl.constexpr, ADDEND: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """`product` for one matrix whose operands the tensor memory accelerator can read: persistent blocks.

    a: descriptor of [M, K]; b: of [N, K] with BY_COLUMN (K lies next to one another, as in a weight), else
    of [K, N]; out: contiguous [M, N], or fp32 [chunks, M, N] with CHUNKS "parallel". A tile has
    BLOCK_N + MORE columns, so that it need not be a power of two wide; b_more is b in blocks of MORE columns.

    tiles: all of them, tiles_m down and tiles_n across, that so many `programs` step through: arguments, as
    they would take registers. WAITS, with CHUNKS "sequence" and neither MORE nor SWAP: a quarter of a tile's
    sum waits in `waiting`, fp32 [programs, BLOCK_M * BLOCK_N / 4].
    """
    pieces = tiles
    if CHUNKS == "parallel":
        pieces = tiles * tl.cdiv(K, CHUNK)
    for piece in tl.range(tl.program_id(0), pieces, programs, disable_licm=WAITS):
        tile_m, tile_n = _tile(piece % tiles, tiles_m, tiles_n, GROUP_M)
        row = tile_m * BLOCK_M
        column = tile_n * (BLOCK_N + MORE)
        number = piece // tiles
        if WAITS:
            total, more, kept = begun_by_quarters(waiting, BLOCK_M, BLOCK_N)
            for begin in range(0, K, CHUNK):
                chain, _ = _chunk_by_descriptors(
                    a, b, b_more, row, column, begin, tl.minimum(K, begin + CHUNK),
                    BLOCK_M, BLOCK_N, BLOCK_K, 0, PRECISION, SWAP, BY_COLUMN,
                )  # fmt: skip
                total, more = added_by_quarters(total, more, kept, chain)
            last = from_held(tl.load(kept))
        elif CHUNKS == "sequence":
            total = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
            more = tl.zeros((BLOCK_M, MORE if MORE else 1), tl.float32)
            for begin in range(0, K, CHUNK):
                chain, more_chain = _chunk_by_descriptors(
                    a, b, b_more, row, column, begin, tl.minimum(K, begin + CHUNK),
                    BLOCK_M, BLOCK_N, BLOCK_K, MORE, PRECISION, SWAP, BY_COLUMN,
                )  # fmt: skip
                total += chain
                more += more_chain
        else:
            begin = 0
            end = K
            if CHUNKS == "parallel":
                begin = number * CHUNK
                end = tl.minimum(K, begin + CHUNK)
            total, more = _chunk_by_descriptors(
                a, b, b_more, row, column, begin, end,
                BLOCK_M, BLOCK_N, BLOCK_K, MORE, PRECISION, SWAP, BY_COLUMN,
            )  # fmt: skip
        if SWAP:
            total = tl.trans(total)
        to = out
        if CHUNKS == "parallel":
            to += number.to(tl.int64) * M * N
        rows = row + tl.arange(0, BLOCK_M)
        if WAITS:
            _write(
                last, c, other, to, rows, column + 3 * BLOCK_N // 4, M, N, c_row, c_column, alpha, beta,
                SCALE, ADDEND, EPILOGUE, PIECE,
            )  # fmt: skip
        _write(
            total, c, other, to, rows, column, M, N, c_row, c_column, alpha, beta,
            SCALE, ADDEND, EPILOGUE, PIECE,
        )  # fmt: skip
        if MORE or WAITS:
            _write(
                more, c, other, to, rows, column + total.shape[1], M, N, c_row, c_column, alpha, beta,
                SCALE, ADDEND, EPILOGUE, PIECE,
            )  # fmt: skip
