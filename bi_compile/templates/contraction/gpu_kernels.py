"""Matrix products in Triton: several ways through the matrices, one tree for every element of the output.

The tree stands in `numerics.py` under CONTRACTION_GPU_CHUNK: chunks of K, each one chain of the tensor
core's sums, added in index order. Tiles, warps and stages, operands swapped or not, read by pointers or by
tensor descriptors, chunks walked by one block ("sequence") or each by its own ("parallel" and `add_chunks`):
none of them is part of the tree.

Every load is masked in both its dimensions, so nothing outside the matrices is ever multiplied, 0 x NaN
included. The number of rows M is never specialised.
"""

import triton
import triton.language as tl

from bi_compile.templates.gpu.pieces import halves


@triton.jit
def _tile(index, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Row and column of a tile: GROUP_M tiles down, then the next column: neighbours share operands."""
    width = GROUP_M * tiles_n
    first = (index // width) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    return first + (index % width) % height, (index % width) // height


@triton.jit
def _chunk(
    a, b, rows, columns, row_in, column_in, begin, end, a_row, a_k, b_k, b_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, SWAP: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """The chain over k = begin .. end-1 for one tile: [BLOCK_M, BLOCK_N], transposed with SWAP."""
    k = tl.arange(0, BLOCK_K)
    a_at = a + rows.to(tl.int64) * a_row
    b_at = b + columns.to(tl.int64) * b_column
    a_k = tl.cast(a_k, tl.int64)
    b_k = tl.cast(b_k, tl.int64)
    total = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    if SWAP:
        a_at = a_at[None, :] + (begin + k).to(tl.int64)[:, None] * a_k
        b_at = b_at[:, None] + (begin + k).to(tl.int64)[None, :] * b_k
    else:
        a_at = a_at[:, None] + (begin + k).to(tl.int64)[None, :] * a_k
        b_at = b_at[None, :] + (begin + k).to(tl.int64)[:, None] * b_k
    for start in range(begin, end, BLOCK_K):
        if SWAP:
            a_in = row_in[None, :]
            b_in = column_in[:, None]
            if not EVEN_K:
                a_in = a_in & (start + k < end)[:, None]
                b_in = b_in & (start + k < end)[None, :]
        else:
            a_in = row_in[:, None]
            b_in = column_in[None, :]
            if not EVEN_K:
                a_in = a_in & (start + k < end)[None, :]
                b_in = b_in & (start + k < end)[:, None]
        x = tl.load(a_at, mask=a_in, other=0.0)
        y = tl.load(b_at, mask=b_in, other=0.0)
        if SWAP:
            total = tl.dot(y, x, total, input_precision=PRECISION)
        else:
            total = tl.dot(x, y, total, input_precision=PRECISION)
        a_at += BLOCK_K * a_k
        b_at += BLOCK_K * b_k
    return total


@triton.jit
def _finish(
    total, c, rows, columns, inside, N, c_row, c_column, alpha, beta,
    SCALE: tl.constexpr, ADDEND: tl.constexpr,
):  # fmt: skip
    """alpha * total + beta * c, each operation rounded on its own.

    SCALE: whether alpha is not 1. ADDEND: "none", "bias" (one row for all, c_row unused) or "matrix", with
    " scaled" behind it if beta is not 1.
    """
    if SCALE:
        total = alpha * total
    if ADDEND != "none":
        if ADDEND == "bias" or ADDEND == "bias scaled":
            addend = tl.load(c + columns.to(tl.int64) * c_column, mask=columns < N, other=0.0)
        else:
            at = c + rows.to(tl.int64) * c_row + columns.to(tl.int64) * c_column
            addend = tl.load(at, mask=inside, other=0.0)
        addend = addend.to(total.dtype)
        if ADDEND == "bias scaled" or ADDEND == "matrix scaled":
            addend = beta * addend
        total = total + addend
    return total


@triton.jit
def _store(total, other, out, at, inside, EPILOGUE: tl.constexpr):
    """Store to out + at, rounded once to its dtype.

    EPILOGUE: a function of `gpu_epilogue`, or None: what follows on the product. It may read `other`.
    """
    if EPILOGUE is not None:
        total = total.to(other.dtype.element_ty).to(tl.float32)
        total = EPILOGUE(total, None, other + at, inside)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _write(
    total, c, other, out, rows, column, M, N, c_row, c_column, alpha, beta,
    SCALE: tl.constexpr, ADDEND: tl.constexpr, EPILOGUE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Finish a tile that begins at `column` and store it to contiguous out [M, N], PIECE columns at a time.

    other: of the same shape and strides.
    """
    if total.shape[1] > PIECE:
        left, right = halves(total)
        _write(
            left, c, other, out, rows, column, M, N, c_row, c_column, alpha, beta,
            SCALE, ADDEND, EPILOGUE, PIECE,
        )  # fmt: skip
        _write(
            right, c, other, out, rows, column + left.shape[1], M, N, c_row, c_column, alpha, beta,
            SCALE, ADDEND, EPILOGUE, PIECE,
        )  # fmt: skip
    else:
        columns = column + tl.arange(0, total.shape[1])
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        total = _finish(
            total, c, rows[:, None], columns[None, :], inside, N, c_row, c_column, alpha, beta, SCALE, ADDEND
        )
        _store(total, other, out, rows.to(tl.int64)[:, None] * N + columns[None, :], inside, EPILOGUE)


@triton.jit(do_not_specialize=["M"])
def product(
    a, b, c, other, out, M, N, K, alpha, beta,
    a_batch, a_row, a_k, b_batch, b_k, b_column, c_batch, c_row, c_column,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    PIECE: tl.constexpr, PRECISION: tl.constexpr, SWAP: tl.constexpr, EVEN_K: tl.constexpr,
    SCALE: tl.constexpr, ADDEND: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """One tile of one matrix of the batch, any strides.

    CHUNKS: "one" (K is at most CHUNK), "sequence", or "parallel": then `out` is fp32 [chunks, batch, M, N]
    and holds the chains alone.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    index = tl.program_id(0)
    matrix = (index // (tiles_m * tiles_n)).to(tl.int64)
    matrices = tl.num_programs(0) // (tiles_m * tiles_n)
    tile_m, tile_n = _tile(index % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP_M)
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = rows < M
    column_in = columns < N
    a += matrix * a_batch
    b += matrix * b_batch
    other += matrix * M * N
    out += matrix * M * N
    if CHUNKS == "one":
        total = _chunk(
            a, b, rows, columns, row_in, column_in, 0, K, a_row, a_k, b_k, b_column,
            BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, EVEN_K,
        )  # fmt: skip
    elif CHUNKS == "parallel":
        number = tl.program_id(1)
        begin = number * CHUNK
        total = _chunk(
            a, b, rows, columns, row_in, column_in, begin, tl.minimum(K, begin + CHUNK),
            a_row, a_k, b_k, b_column,
            BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, EVEN_K,
        )  # fmt: skip
        out += number.to(tl.int64) * matrices * M * N
    else:
        total = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, K, CHUNK):
            total += _chunk(
                a, b, rows, columns, row_in, column_in, begin, tl.minimum(K, begin + CHUNK),
                a_row, a_k, b_k, b_column,
                BLOCK_M, BLOCK_N, BLOCK_K, PRECISION, SWAP, EVEN_K,
            )  # fmt: skip
    if SWAP:
        total = tl.trans(total)
    _write(
        total, c + matrix * c_batch, other, out, rows, tile_n * BLOCK_N, M, N, c_row, c_column, alpha, beta,
        SCALE, ADDEND, EPILOGUE, PIECE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "batch"])
def add_chunks(
    chains, c, other, out, batch, M, N, chunks, alpha, beta, c_batch, c_row, c_column,
    BLOCK: tl.constexpr, SCALE: tl.constexpr, ADDEND: tl.constexpr, EPILOGUE: tl.constexpr,
):  # fmt: skip
    """out [batch, M, N] from the chains [chunks, batch, M, N], in the order of the chunks."""
    size = batch.to(tl.int64) * M * N
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for number in range(chunks):
        total += tl.load(chains + number * size + at, mask=inside, other=0.0)
    columns = at % N
    rows = (at // N) % M
    matrix = at // N // M
    total = _finish(
        total, c + matrix * c_batch, rows, columns, inside, N, c_row, c_column, alpha, beta, SCALE, ADDEND
    )
    _store(total, other, out, at, inside, EPILOGUE)


@triton.jit(do_not_specialize=["M", "batch"])
def finish(
    rounded, other, out, batch, M, N, BLOCK: tl.constexpr, EPILOGUE: tl.constexpr
):  # fmt: skip
    """An epilogue of a product that is stored already, [batch, M, N]; out may be where it is."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < batch.to(tl.int64) * M * N
    _store(tl.load(rounded + at, mask=inside, other=0.0), other, out, at, inside, EPILOGUE)


@triton.jit
def _total_in_double(
    a_at, b_at, row_in, column_in, K, a_k, b_k,
    CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Chunks of fused multiply-adds, added in index order; a_at, b_at: where rows and columns begin."""
    a_k = tl.cast(a_k, tl.int64)
    b_k = tl.cast(b_k, tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float64)
    for begin in range(0, K, CHUNK):
        chain = tl.zeros((BLOCK_M, BLOCK_N), tl.float64)
        for k in range(begin, tl.minimum(K, begin + CHUNK)):
            x = tl.load(a_at + k * a_k, mask=row_in, other=0.0)
            y = tl.load(b_at + k * b_k, mask=column_in, other=0.0)
            chain = tl.fma(
                tl.broadcast_to(x[:, None], (BLOCK_M, BLOCK_N)),
                tl.broadcast_to(y[None, :], (BLOCK_M, BLOCK_N)),
                chain,
            )
        total += chain
    return total


@triton.jit(do_not_specialize=["M"])
def product_in_double(
    a, b, c, out, scales, M, N, K,
    a_batch, a_row, a_k, b_batch, b_k, b_column, c_batch, c_row, c_column,
    CHUNK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALE: tl.constexpr, ADDEND: tl.constexpr,
):  # fmt: skip
    """fp64: chunks of fused multiply-adds, added in index order. scales: alpha and beta as fp64 in memory."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    matrix = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    rows = (tile // tiles_n) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_in = rows < M
    column_in = columns < N
    a_at = a + matrix * a_batch + rows.to(tl.int64) * a_row
    b_at = b + matrix * b_batch + columns.to(tl.int64) * b_column
    total = _total_in_double(a_at, b_at, row_in, column_in, K, a_k, b_k, CHUNK, BLOCK_M, BLOCK_N)
    inside = row_in[:, None] & column_in[None, :]
    alpha = tl.load(scales) if SCALE else 1.0
    beta = 1.0
    if ADDEND == "bias scaled" or ADDEND == "matrix scaled":
        beta = tl.load(scales + 1)
    total = _finish(
        total, c + matrix * c_batch, rows[:, None], columns[None, :], inside, N, c_row, c_column, alpha, beta,
        SCALE, ADDEND,
    )  # fmt: skip
    tl.store(out + matrix * M * N + rows.to(tl.int64)[:, None] * N + columns[None, :], total, mask=inside)
