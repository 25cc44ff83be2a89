"""layer_norm and rms_norm on CUDA devices: sums by templates/gpu/row_tree, every operation rounded.

A program reads its rows from memory for the first sum, and from the cache for the second and for the result:
the sums want few elements side by side in a thread, the result wants 16 bytes. Rows longer than a program
takes go through the kernels of the reductions and one for the result.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions, row_tree
from bi_compile.templates.gpu.blocks import Blocks
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.gpu.row_view import RowView, as_rows
from bi_compile.templates.reduction.gpu import run
from bi_compile.templates.reduction.shapes import acc_dtype
from bi_compile.templates.registry import implements

_MOST_CHUNKS = 64
_EARLY = 128
"""Elements, weights and biases that a thread holds before they are needed."""


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
def _rstd(squares, length, eps):
    variance = functions.divide(squares, length)
    return functions.divide(tl.full(squares.shape, 1.0, squares.dtype), functions.sqrt(variance + eps))


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


@triton.jit(do_not_specialize=["rows"])
def _normalize(
    x, more, weight, bias, out, sums, means, rstds, rows, n, length: tl.float64, eps: tl.float64,
    kept_size, kept_outer, kept_inner, element_size, element_outer, element_inner,
    ADDED: tl.constexpr, CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr, TILE: tl.constexpr,
    EARLY: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr, EVEN: tl.constexpr,
    KEPT_TWO: tl.constexpr, ELEMENT_TWO: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """ADDED: the rows are those of x + more, which are stored in sums."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    begin = x + row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)
    more += row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)
    target = (row.to(tl.int64) * n)[:, None]
    dtype: tl.constexpr = functions.widened(tl.zeros((1,), x.dtype.element_ty)).dtype
    of_length = tl.full((ROWS,), length, dtype)
    mean = tl.zeros((ROWS,), dtype)
    column = tl.arange(0, TILE)[None, :] + tl.zeros_like(row)[:, None]
    if EARLY:
        # One tile is the row: what is written is read before the sums are known, not after.
        inside = there[:, None] & (column < n)
        offset = row_tree.element_offset(
            column, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
        )
        early = _element(begin[:, None] + offset, more[:, None] + offset, inside, EVEN, ADDED)
        scale = _parameter(weight, column, inside, EVEN, WEIGHT)
        shift = _parameter(bias, column, inside, EVEN, BIAS)
    if CENTRED:
        total = _moment(
            begin, more, there, n, mean, element_size, element_outer, element_inner,
            ADDED, CENTRED, False, CHUNKS, STEPS, UNROLL, ELEMENT_TWO, WIDE, WHOLE, FULL,
        )  # fmt: skip
        mean = functions.divide(total, of_length)
    squares = _moment(
        begin, more, there, n, mean, element_size, element_outer, element_inner,
        ADDED, CENTRED, True, CHUNKS, STEPS, UNROLL, ELEMENT_TWO, WIDE, WHOLE, FULL,
    )  # fmt: skip
    rstd = _rstd(squares, of_length, tl.full((ROWS,), eps, dtype))
    for tile in range(0, TILE if EARLY else n, TILE):
        i = tile + column
        inside = there[:, None] & (i < n)
        if EARLY:
            value = early
        else:
            offset = row_tree.element_offset(i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE)
            value = _element(begin[:, None] + offset, more[:, None] + offset, inside, EVEN, ADDED)
            scale = _parameter(weight, i, inside, EVEN, WEIGHT)
            shift = _parameter(bias, i, inside, EVEN, BIAS)
        y = _centred(functions.widened(value), mean[:, None], CENTRED) * rstd[:, None]
        y = functions.rounded(_affine(y, scale, shift, WEIGHT, BIAS), out.dtype.element_ty)
        row_tree.store(out + target + i, y, inside, EVEN)
        if ADDED:
            row_tree.store(sums + target + i, value, inside, EVEN)
    if CENTRED:
        tl.store(means + row, functions.rounded(mean, means.dtype.element_ty), mask=there)
    tl.store(rstds + row, functions.rounded(rstd, rstds.dtype.element_ty), mask=there)


@triton.jit
def _apply(
    x, weight, bias, means, squares, out, rstds, n, blocks, length: tl.float64, eps: tl.float64,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one row of a contiguous x, given its mean and the sum of its squared deviations."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    there = i < n
    total = tl.load(squares + row + tl.zeros((1,), tl.int32))
    dtype: tl.constexpr = total.dtype
    rstd = _rstd(total, tl.full((1,), length, dtype), tl.full((1,), eps, dtype))
    value = functions.widened(tl.load(x + row * n + i, mask=there, other=0.0))
    mean = tl.load(means + row) if CENTRED else 0.0
    y = _centred(value, mean, CENTRED) * rstd
    scale = tl.load(weight + i, mask=there, other=0.0) if WEIGHT else 0.0
    shift = tl.load(bias + i, mask=there, other=0.0) if BIAS else 0.0
    y = _affine(y, scale, shift, WEIGHT, BIAS)
    tl.store(out + row * n + i, functions.rounded(y, out.dtype.element_ty), mask=there)
    tl.store(rstds + row + tl.zeros((1,), tl.int32), functions.rounded(rstd, rstds.dtype.element_ty))


def _long(x: torch.Tensor, rows: int, weight, bias, eps, out, rstds, *, centred: bool) -> torch.Tensor:
    """For rows beyond one program; returns the means."""
    x, view = as_rows(x.reshape(rows, x.numel() // rows), [1])
    means = run(x, view, "sum", finish="quotient", number=view.n, keep_wide=True) if centred else out
    element = "deviation" if centred else "square"
    squares = run(x, view, "sum", element=element, shifts=means if centred else None, keep_wide=True)
    blocks = triton.cdiv(view.n, 1024)
    _apply[(view.rows * blocks,)](
        x, out if weight is None else weight, out if bias is None else bias, means, squares, out, rstds,
        view.n, blocks, float(view.n), eps, CENTRED=centred, WEIGHT=weight is not None, BIAS=bias is not None,
        BLOCK=1024, **COMPILATION,
    )  # fmt: skip
    return means


def _normalized(
    x: torch.Tensor,
    more: torch.Tensor | None,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    statistics: torch.dtype,
    *,
    centred: bool,
) -> tuple[torch.Tensor, ...]:
    """x + more if there is more, the result, means (rstds if not centred) and rstds."""
    outer = x.dim() - len(normalized_shape)
    shape = [*x.shape[:outer], *[1] * len(normalized_shape)]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    sums = out if more is None else torch.empty_like(out)
    rstds = x.new_empty(shape, dtype=statistics)
    means = torch.empty_like(rstds) if centred else rstds
    if weight is not None:
        weight = weight.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    if more is not None and more.stride() != x.stride():
        x, more = x.contiguous(), more.contiguous()
    rows, view = as_rows(x, range(outer, x.dim()))
    if view.n == 0:
        # Of no elements eager says that the mean is 0; the variance is 0 / 0.
        return sums, out, means.zero_(), rstds.fill_(torch.nan)
    if view.rows == 0:
        return sums, out, means, rstds
    given = [None if p is None else p.dtype for p in (weight, bias)]
    launch = _launch(x.device.index, x.dtype, statistics, view, *given, float(eps), centred, more is not None)
    if launch is None:
        if more is not None:
            rows = torch.add(x, more, out=sums)
        found = _long(rows, view.rows, weight, bias, eps, out, rstds, centred=centred)
        if centred:
            means = torch.where(found.isnan(), torch.nan, found.to(statistics)).view(shape)
        return sums, out, means, rstds
    other = rows if more is None else as_rows(more, range(outer, x.dim()))[0]
    scale, shift = (out if p is None else p for p in (weight, bias))
    launch(rows, other, scale, shift, out, sums, means, rstds)
    return sums, out, means, rstds


@functools.lru_cache(maxsize=4096)
def _launch(
    device: int,
    dtype: torch.dtype,
    statistics: torch.dtype,
    view: RowView,
    weight: torch.dtype | None,
    bias: torch.dtype | None,
    eps: float,
    centred: bool,
    added: bool,
) -> Launch | None:
    """None where rows are too long for a program. weight, bias: their dtypes."""
    blocks = Blocks.for_rows(view, size=dtype.itemsize, most_chunks=_MOST_CHUNKS, alike=2)
    if view.n > blocks.CHUNKS * row_tree.CHUNK.value:
        return None
    numbers = {"rows": view.rows, "n": view.n, "length": float(view.n), "eps": eps}
    given = (weight is not None) + (bias is not None)
    early = view.n <= blocks.TILE and blocks.TILE * (blocks.ROWS + given) <= _EARLY * 32 * blocks.num_warps
    choices = {"ADDED": added, "CENTRED": centred, "EARLY": early}
    choices |= {"WEIGHT": weight is not None, "BIAS": bias is not None}
    arguments = {**numbers, **choices, **view.arguments(), **blocks.arguments(_normalize), **COMPILATION}
    return Launch(_normalize, (triton.cdiv(view.rows, blocks.ROWS),), arguments)


def _statistics(x: torch.Tensor, *parameters: torch.Tensor | None) -> torch.dtype:
    # Eager keeps the statistics in x's dtype, or in fp32 when the parameters are wider than x.
    same = all(p is None or p.dtype == x.dtype for p in parameters)
    return x.dtype if same else acc_dtype(x.dtype)


@implements("layer_norm")
def layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    statistics = _statistics(x, weight, bias)
    return _normalized(x, None, normalized_shape, weight, bias, eps, statistics, centred=True)[1:]


@implements("added_layer_norm")
def added_layer_norm(
    x: torch.Tensor,
    more: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    statistics = _statistics(x, weight, bias)
    return _normalized(x, more, normalized_shape, weight, bias, eps, statistics, centred=True)


@implements("rms_norm")
def rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, ...]:
    statistics = acc_dtype(x.dtype)
    _, out, _, rstd = _normalized(x, None, normalized_shape, weight, None, eps, statistics, centred=False)
    return out, rstd


@implements("added_rms_norm")
def added_rms_norm(
    x: torch.Tensor,
    more: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    statistics = acc_dtype(x.dtype)
    sums, out, _, rstd = _normalized(x, more, normalized_shape, weight, None, eps, statistics, centred=False)
    return sums, out, rstd
