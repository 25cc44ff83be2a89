"""softmax and log_softmax on CUDA devices: maximum, sum by the tree of templates/gpu/row_tree, quotient.

A program keeps its rows in registers or, where they are too long for it, reads them again from the cache.
Rows longer than a program takes go through the kernels of the reductions and one for the quotients.
"""

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions, row_tree
from bi_compile.templates.gpu.blocks import Blocks
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.row_view import RowView
from bi_compile.templates.reduction.gpu import run
from bi_compile.templates.reduction.shapes import wrap_dim
from bi_compile.templates.registry import implements

_MOST_CHUNKS = 256


@triton.jit
def _quotient(x, maximum, total, LOG: tl.constexpr):
    """`total` is the sum of the exponentials or, for LOG, its logarithm."""
    if LOG:
        return (x - maximum) - total
    else:
        return functions.divide(functions.exp(x - maximum), total + tl.zeros_like(x))


@triton.jit(do_not_specialize=["rows"])
def _softmax(
    x, out, rows, n, out_outer, out_inner,
    kept_size, kept_outer, kept_inner, element_size, element_outer, element_inner,
    LOG: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
    KEPT: tl.constexpr,
    KEPT_TWO: tl.constexpr, ELEMENT_TWO: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The row (a, b) of `out` begins at a * out_outer + b; its elements are out_inner apart."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (row < rows)[:, None, None]
    begin = x + row_tree.row_offset(row, kept_size, kept_outer, kept_inner, KEPT_TWO)[:, None, None]
    target = row.to(tl.int64)
    target = out + ((target // out_inner) * out_outer + target % out_inner)[:, None, None]
    first = row_tree.lane_index(CHUNKS)
    dtype: tl.constexpr = functions.widened(tl.zeros((1,), x.dtype.element_ty)).dtype
    # The sign of a zero maximum and a NaN that is passed over do not matter: the sum meets the NaN itself.
    largest = tl.full((ROWS, CHUNKS, row_tree.LANES), -float("inf"), dtype)
    lanes = tl.zeros((ROWS, CHUNKS, row_tree.LANES), dtype)
    if KEPT:
        # The rows stay in registers: read once.
        values = ()
        for turn in tl.static_range(STEPS):
            i = first + turn * row_tree.LANES
            at = begin + row_tree.element_offset(
                i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
            )
            value = functions.widened(tl.load(at, mask=there & (i < n), other=-float("inf")))
            values = values + (value,)  # noqa: RUF005  (all that Triton knows)
            largest = tl.maximum(largest, value)
        maximum = tl.max(tl.max(largest, 2), 1)[:, None, None]
        for turn in tl.static_range(STEPS):
            lanes += tl.where(first + turn * row_tree.LANES < n, functions.exp(values[turn] - maximum), 0.0)
        total = row_tree.fold(lanes)
        if LOG:
            total = functions.log(total)
        for turn in tl.static_range(STEPS):
            i = first + turn * row_tree.LANES
            result = functions.rounded(
                _quotient(values[turn], maximum, total[:, None, None], LOG), out.dtype.element_ty
            )
            if WIDE:
                i = i.to(tl.int64)
            tl.store(target + i * out_inner, result, mask=there & (i < n))
    else:
        for step in range(0, STEPS, UNROLL):
            for turn in tl.static_range(UNROLL):
                i = first + (step + turn) * row_tree.LANES
                at = begin + row_tree.element_offset(
                    i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
                )
                value = tl.load(at, mask=there & (i < n), other=-float("inf"))
                largest = tl.maximum(largest, functions.widened(value))
        maximum = tl.max(tl.max(largest, 2), 1)[:, None, None]
        for step in range(0, STEPS, UNROLL):
            for turn in tl.static_range(UNROLL):
                i = first + (step + turn) * row_tree.LANES
                at = begin + row_tree.element_offset(
                    i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
                )
                value = functions.widened(tl.load(at, mask=there & (i < n), other=0.0))
                lanes += tl.where(i < n, functions.exp(value - maximum), 0.0)
        total = row_tree.fold(lanes)
        if LOG:
            total = functions.log(total)
        for step in range(0, STEPS, UNROLL):
            for turn in tl.static_range(UNROLL):
                i = first + (step + turn) * row_tree.LANES
                at = begin + row_tree.element_offset(
                    i, element_size, element_outer, element_inner, ELEMENT_TWO, WIDE
                )
                value = functions.widened(tl.load(at, mask=there & (i < n), other=0.0))
                result = functions.rounded(
                    _quotient(value, maximum, total[:, None, None], LOG), out.dtype.element_ty
                )
                if WIDE:
                    i = i.to(tl.int64)
                tl.store(target + i * out_inner, result, mask=there & (i < n))


@triton.jit
def _quotients(x, maxima, totals, out, count, n, inner, LOG: tl.constexpr, BLOCK: tl.constexpr):
    """Element by element, over a contiguous x of rows that are `inner` apart inside blocks of n * inner."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    row = i // (n * inner) * inner + i % inner
    value = functions.widened(tl.load(x + i, mask=there, other=0.0))
    maximum = tl.load(maxima + row, mask=there, other=0.0)
    total = tl.load(totals + row, mask=there, other=1.0)
    if LOG:
        total = functions.log(total)
    tl.store(
        out + i, functions.rounded(_quotient(value, maximum, total, LOG), out.dtype.element_ty), mask=there
    )


def _long(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    view = RowView.of(x, [dim])
    maxima = run(view, "max", keep_wide=True)
    totals = run(view, "sum", element="exponential", shifts=maxima, keep_wide=True)
    block = 1024
    _quotients[(triton.cdiv(x.numel(), block),)](
        x, maxima, totals, out, x.numel(), view.n, x.stride(dim), LOG=log, BLOCK=block, **COMPILATION
    )
    return out


def _softmax_over(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    shape = x.shape
    if x.dim() == 0:
        x = x.view(1)
    dim = wrap_dim(dim, x.dim())
    if x.numel() == 0:
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    view = RowView.of(x, [dim])
    blocks = Blocks.choose(view.rows, view.n, columns=view.columns, most_chunks=_MOST_CHUNKS)
    if view.n > blocks.CHUNKS * row_tree.CHUNK.value:
        return _long(x, dim, log).view(shape)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _softmax[(triton.cdiv(view.rows, blocks.ROWS),)](
        view.x, out, view.rows, view.n, view.n * out.stride(dim), out.stride(dim), LOG=log,
        KEPT=blocks.kept, **view.arguments(), **blocks.arguments(), **COMPILATION,
    )  # fmt: skip
    return out.view(shape)


@implements("softmax")
def softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _softmax_over(x, dim, log=False)


@implements("log_softmax")
def log_softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _softmax_over(x, dim, log=True)
