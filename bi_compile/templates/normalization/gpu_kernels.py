"""The kernels of layer_norm and rms_norm: sums by templates/gpu/row_tree, every operation rounded.

A program reads its rows from memory for the first sum, and from the cache for the second and for the result:
the sums want few elements side by side in a thread, the result wants 16 bytes.
"""

import triton
import triton.language as tl

from bi_compile.templates.gpu import functions, overlap, row_tree


@triton.jit
def _element(at, more, there, WHOLE: tl.constexpr, ADDED: tl.constexpr):
    """Elements, or sums of two, rounded to their dtype as generated code rounds them, NaN included."""
    value = row_tree.load(at, there, 0.0, WHOLE)
    if ADDED:
        other = row_tree.load(more, there, 0.0, WHOLE)
        value = (functions.widened(value) + functions.widened(other)).to(value.dtype)
    return value


@triton.jit
def _centred(x, mean, CENTRED: tl.constexpr):
    if CENTRED:
        return x - mean
    else:
        return x


@triton.jit
def _parameter(p, i, there, EVEN: tl.constexpr, GIVEN: tl.constexpr):
    """The weights or biases of elements i, for every row."""
    if GIVEN:
        return row_tree.load(p + i, there, 0.0, EVEN)
    else:
        return 0.0


@triton.jit
def _affine(y, weight, bias, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    if WEIGHT:
        y = y * weight.to(y.dtype)
    if BIAS:
        y = y + bias.to(y.dtype)
    return y


@triton.jit
def _average(total, length, inverse, EXACT: tl.constexpr):
    """total / length, rounded once. EXACT: length is a power of two; a product by its inverse is the same."""
    if EXACT:
        return total * inverse
    else:
        return functions.divide(total, length)


@triton.jit
def _rstd(variance, eps):
    return functions.divide(tl.full(variance.shape, 1.0, variance.dtype), functions.sqrt(variance + eps))


@triton.jit
def _moment(
    begin, more, there, n, mean, size, outer, inner,
    ADDED: tl.constexpr, CENTRED: tl.constexpr, SQUARED: tl.constexpr,
    CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
    TWO: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """[ROWS]: the sums of the elements or of their squares, less the mean where CENTRED."""
    ROWS: tl.constexpr = begin.shape[0]
    lanes = tl.zeros((ROWS, CHUNKS, row_tree.LANES), mean.dtype)
    first = row_tree.lane_index(CHUNKS)
    for step in range(0, STEPS, UNROLL):
        for turn in tl.static_range(UNROLL):
            i = first + (step + turn) * row_tree.LANES
            offset = row_tree.element_offset(i, size, outer, inner, TWO, WIDE)
            inside = row_tree.inside(first, step + turn, n, FULL)
            at = begin[:, None, None] + offset
            other = more[:, None, None] + offset
            value = functions.widened(_element(at, other, there[:, None, None] & inside, WHOLE, ADDED))
            if SQUARED:
                value = _centred(value, mean[:, None, None], CENTRED)
                value = value * value
                if not WHOLE:
                    value = tl.where(inside, value, 0.0)
            lanes += value
    return row_tree.fold(lanes)


@triton.jit
def _read(
    begin, more, weight, bias, tile, column, there, n, size, outer, inner,
    ADDED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    EVEN: tl.constexpr, TWO: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What the results of a tile are made of, besides the sums: elements, weights and biases."""
    i = tile + column
    inside = there[:, None] & (i < n)
    offset = row_tree.element_offset(i, size, outer, inner, TWO, WIDE)
    value = _element(begin[:, None] + offset, more[:, None] + offset, inside, EVEN, ADDED)
    return value, _parameter(weight, i, inside, EVEN, WEIGHT), _parameter(bias, i, inside, EVEN, BIAS)


@triton.jit
def _write(
    value, scale, shift, mean, rstd, out, sums, target, tile, column, there, n,
    ADDED: tl.constexpr, CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    i = tile + column
    inside = there[:, None] & (i < n)
    y = _centred(functions.widened(value), mean[:, None], CENTRED) * rstd[:, None]
    y = functions.rounded_in_pairs(_affine(y, scale, shift, WEIGHT, BIAS), out.dtype.element_ty)
    row_tree.store(out + target + i, y, inside, EVEN)
    if ADDED:
        row_tree.store(sums + target + i, value, inside, EVEN)


@triton.jit(do_not_specialize=["rows"])
def normalize(
    x, more, weight, bias, out, sums, means, rstds, rows, n, length: tl.float64, inverse: tl.float64,
    eps: tl.float64,
    kept_size, kept_outer, kept_inner, element_size, element_outer, element_inner,
    ADDED: tl.constexpr, CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr, TILE: tl.constexpr,
    HELD: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr,
    KEPT_TWO: tl.constexpr, ELEMENT_TWO: tl.constexpr, WIDE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """ADDED: the rows are those of x + more, which are stored in sums. HELD: tiles of a row, or 0."""
    overlap.follow(OVERLAP)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    begin = x + row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)
    more += row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)
    target = (row.to(tl.int64) * n)[:, None]
    dtype: tl.constexpr = functions.widened(tl.zeros((1,), x.dtype.element_ty)).dtype
    of_length, of_inverse = tl.full((ROWS,), length, dtype), tl.full((ROWS,), inverse, dtype)
    mean = tl.zeros((ROWS,), dtype)
    column = tl.arange(0, TILE)[None, :] + tl.zeros_like(row)[:, None]
    # What few tiles are made of is read before the sums are known, not after.
    held = ()
    for tile in tl.static_range(HELD):
        read = _read(
            begin, more, weight, bias, tile * TILE, column, there, n,
            element_size, element_outer, element_inner, ADDED, WEIGHT, BIAS, EVEN, ELEMENT_TWO, WIDE,
        )  # fmt: skip
        held = held + (read,)  # noqa: RUF005  (all that Triton knows)
    if CENTRED:
        total = _moment(
            begin, more, there, n, mean, element_size, element_outer, element_inner,
            ADDED, CENTRED, False, CHUNKS, STEPS, UNROLL, ELEMENT_TWO, WIDE, WHOLE, FULL,
        )  # fmt: skip
        mean = _average(total, of_length, of_inverse, EXACT)
    squares = _moment(
        begin, more, there, n, mean, element_size, element_outer, element_inner,
        ADDED, CENTRED, True, CHUNKS, STEPS, UNROLL, ELEMENT_TWO, WIDE, WHOLE, FULL,
    )  # fmt: skip
    rstd = _rstd(_average(squares, of_length, of_inverse, EXACT), tl.full((ROWS,), eps, dtype))
    for tile in tl.static_range(HELD):
        value, scale, shift = held[tile]
        _write(
            value, scale, shift, mean, rstd, out, sums, target, tile * TILE, column, there, n,
            ADDED, CENTRED, WEIGHT, BIAS, EVEN,
        )  # fmt: skip
    if HELD == 0:
        for tile in range(0, n, TILE):
            value, scale, shift = _read(
                begin, more, weight, bias, tile, column, there, n,
                element_size, element_outer, element_inner, ADDED, WEIGHT, BIAS, EVEN, ELEMENT_TWO, WIDE,
            )  # fmt: skip
            _write(
                value, scale, shift, mean, rstd, out, sums, target, tile, column, there, n,
                ADDED, CENTRED, WEIGHT, BIAS, EVEN,
            )  # fmt: skip
    if CENTRED:
        tl.store(means + row, functions.rounded(mean, means.dtype.element_ty), mask=there)
    tl.store(rstds + row, functions.rounded(rstd, rstds.dtype.element_ty), mask=there)


@triton.jit
def apply(
    x, weight, bias, means, squares, out, rstds, n, blocks, length: tl.float64, eps: tl.float64,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one row of a contiguous x, given its mean and the sum of its squared deviations."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    total = tl.load(squares + row + tl.zeros((1,), tl.int32))
    dtype: tl.constexpr = total.dtype
    rstd = _rstd(functions.divide(total, tl.full((1,), length, dtype)), tl.full((1,), eps, dtype))
    value = functions.widened(tl.load(x + row * n + i, mask=there, other=0.0))
    mean = tl.load(means + row) if CENTRED else 0.0
    y = _centred(value, mean, CENTRED) * rstd
    scale = tl.load(weight + i, mask=there, other=0.0) if WEIGHT else 0.0
    shift = tl.load(bias + i, mask=there, other=0.0) if BIAS else 0.0
    y = _affine(y, scale, shift, WEIGHT, BIAS)
    tl.store(out + row * n + i, functions.rounded(y, out.dtype.element_ty), mask=there)
    tl.store(rstds + row + tl.zeros((1,), tl.int32), functions.rounded(rstd, rstds.dtype.element_ty))
