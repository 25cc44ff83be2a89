"""layer_norm and rms_norm on CUDA devices: sums by templates/gpu/row_tree, every operation rounded.

A program keeps its rows in registers or, where they are too long for it, reads them again from the cache for
each sum and for the result. Rows longer than a program takes go through the kernels of the reductions and
one for the result.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions, row_tree
from bi_compile.templates.gpu.blocks import Blocks
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.row_view import RowView
from bi_compile.templates.reduction.gpu import run
from bi_compile.templates.reduction.shapes import acc_dtype
from bi_compile.templates.registry import implements

_MOST_CHUNKS = 64


@triton.jit
def _centred(x, mean, CENTRED: tl.constexpr):
    if CENTRED:
        return x - mean
    else:
        return x


@triton.jit
def _parameter(p, i, n, row, GIVEN: tl.constexpr):
    """The weights or biases of elements i, for every row: of the shape of the rows, or they change layout."""
    if GIVEN:
        i = i + tl.zeros_like(row)[:, None, None]
        return tl.load(p + i, mask=i < n, other=0.0)
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


@triton.jit(do_not_specialize=["rows"])
def _normalize(
    x, weight, bias, out, means, rstds, rows, n, length: tl.float64, eps: tl.float64,
    kept_size, kept_outer, kept_inner, element_size, element_outer, element_inner,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr, KEPT: tl.constexpr,
    KEPT_TWO: tl.constexpr, ELEMENT_TWO: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (row < rows)[:, None, None]
    begin = x + row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)[:, None, None]
    target = out + (row.to(tl.int64) * n)[:, None, None]
    first = row_tree.lane_index(CHUNKS)
    dtype: tl.constexpr = functions.widened(tl.zeros((1,), x.dtype.element_ty)).dtype
    of_length = tl.full((ROWS,), length, dtype)
    mean = tl.zeros((ROWS,), dtype)
    if KEPT:
        # The rows stay in registers: read once.
        values, weights, biases = (), (), ()
        for turn in tl.static_range(STEPS):
            i = first + turn * row_tree.LANES
            at = begin + row_tree.element_offset(
                i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
            )
            value = functions.widened(tl.load(at, mask=there & (i < n), other=0.0))
            values = values + (value,)  # noqa: RUF005  (all that Triton knows)
            # With the elements, not when they are wanted: they would be waited for then.
            weights = weights + (_parameter(weight, i, n, row, WEIGHT),)  # noqa: RUF005
            biases = biases + (_parameter(bias, i, n, row, BIAS),)  # noqa: RUF005
        if CENTRED:
            lanes = tl.zeros((ROWS, CHUNKS, row_tree.LANES), dtype)
            for turn in tl.static_range(STEPS):
                lanes += values[turn]
            mean = functions.divide(row_tree.fold(lanes), of_length)
        lanes = tl.zeros((ROWS, CHUNKS, row_tree.LANES), dtype)
        for turn in tl.static_range(STEPS):
            d = _centred(values[turn], mean[:, None, None], CENTRED)
            lanes += tl.where(first + turn * row_tree.LANES < n, d * d, 0.0)
        rstd = _rstd(row_tree.fold(lanes), of_length, tl.full((ROWS,), eps, dtype))
        for turn in tl.static_range(STEPS):
            i = first + turn * row_tree.LANES
            y = _centred(values[turn], mean[:, None, None], CENTRED) * rstd[:, None, None]
            y = _affine(y, weights[turn], biases[turn], WEIGHT, BIAS)
            tl.store(target + i, functions.rounded(y, out.dtype.element_ty), mask=there & (i < n))
    else:
        if CENTRED:
            lanes = tl.zeros((ROWS, CHUNKS, row_tree.LANES), dtype)
            for step in range(0, STEPS, UNROLL):
                for turn in tl.static_range(UNROLL):
                    i = first + (step + turn) * row_tree.LANES
                    at = begin + row_tree.element_offset(
                        i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
                    )
                    lanes += functions.widened(tl.load(at, mask=there & (i < n), other=0.0))
            mean = functions.divide(row_tree.fold(lanes), of_length)
        lanes = tl.zeros((ROWS, CHUNKS, row_tree.LANES), dtype)
        for step in range(0, STEPS, UNROLL):
            for turn in tl.static_range(UNROLL):
                i = first + (step + turn) * row_tree.LANES
                at = begin + row_tree.element_offset(
                    i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
                )
                value = functions.widened(tl.load(at, mask=there & (i < n), other=0.0))
                d = _centred(value, mean[:, None, None], CENTRED)
                lanes += tl.where(i < n, d * d, 0.0)
        rstd = _rstd(row_tree.fold(lanes), of_length, tl.full((ROWS,), eps, dtype))
        for step in range(0, STEPS, UNROLL):
            for turn in tl.static_range(UNROLL):
                i = first + (step + turn) * row_tree.LANES
                at = begin + row_tree.element_offset(
                    i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
                )
                value = functions.widened(tl.load(at, mask=there & (i < n), other=0.0))
                y = _centred(value, mean[:, None, None], CENTRED) * rstd[:, None, None]
                scale, shift = _parameter(weight, i, n, row, WEIGHT), _parameter(bias, i, n, row, BIAS)
                y = _affine(y, scale, shift, WEIGHT, BIAS)
                tl.store(target + i, functions.rounded(y, out.dtype.element_ty), mask=there & (i < n))
    if CENTRED:
        tl.store(means + row, functions.rounded(mean, means.dtype.element_ty), mask=row < rows)
    tl.store(rstds + row, functions.rounded(rstd, rstds.dtype.element_ty), mask=row < rows)


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


def _long(view: RowView, weight, bias, eps, out, rstds, *, centred: bool) -> torch.Tensor:
    """For rows beyond one program; returns the means."""
    x = view.x.reshape(view.rows, view.n)
    view = RowView.of(x, [1])
    means = run(view, "sum", finish="quotient", number=view.n, keep_wide=True) if centred else out
    element = "deviation" if centred else "square"
    squares = run(view, "sum", element=element, shifts=means if centred else None, keep_wide=True)
    blocks = triton.cdiv(view.n, 1024)
    _apply[(view.rows * blocks,)](
        x, out if weight is None else weight, out if bias is None else bias, means, squares, out, rstds,
        view.n, blocks, float(view.n), eps, CENTRED=centred, WEIGHT=weight is not None, BIAS=bias is not None,
        BLOCK=1024, **COMPILATION,
    )  # fmt: skip
    return means


def _normalized(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    statistics: torch.dtype,
    *,
    centred: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    outer = x.dim() - len(normalized_shape)
    shape = [*x.shape[:outer], *[1] * len(normalized_shape)]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    means = torch.empty(shape if centred else [0], dtype=statistics, device=x.device)
    rstds = torch.empty(shape, dtype=statistics, device=x.device)
    if weight is not None:
        weight = weight.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    view = RowView.of(x, range(outer, x.dim()))
    if view.n == 0:
        # Of no elements eager says that the mean is 0; the variance is 0 / 0.
        return out, means.zero_(), rstds.fill_(torch.nan)
    if view.rows == 0:
        return out, means, rstds
    blocks = Blocks.choose(view.rows, view.n, most_chunks=_MOST_CHUNKS)
    if view.n > blocks.CHUNKS * row_tree.CHUNK.value:
        found = _long(view, weight, bias, eps, out, rstds, centred=centred)
        if centred:
            means = torch.where(found.isnan(), torch.nan, found.to(statistics)).view(shape)
        return out, means, rstds
    _normalize[(triton.cdiv(view.rows, blocks.ROWS),)](
        view.x, out if weight is None else weight, out if bias is None else bias, out, means, rstds,
        view.rows, view.n, float(view.n), eps, CENTRED=centred, WEIGHT=weight is not None, BIAS=bias is not
        None, KEPT=blocks.kept, **view.arguments(), **blocks.arguments(), **COMPILATION,
    )  # fmt: skip
    return out, means, rstds


@implements("layer_norm")
def layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Eager keeps the statistics in x's dtype, or in fp32 when the parameters are wider than x.
    same = all(t is None or t.dtype == x.dtype for t in (weight, bias))
    statistics = x.dtype if same else acc_dtype(x.dtype)
    return _normalized(x, normalized_shape, weight, bias, eps, statistics, centred=True)


@implements("rms_norm")
def rms_norm(
    x: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, _, rstd = _normalized(x, normalized_shape, weight, None, eps, acc_dtype(x.dtype), centred=False)
    return out, rstd
