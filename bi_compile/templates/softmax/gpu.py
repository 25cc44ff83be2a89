"""softmax and log_softmax on CUDA devices: maximum, sum by the tree of templates/gpu/row_tree, quotient.

A program keeps its rows in registers or, where they are too long for it, reads them again from the cache.
Rows longer than a program takes go through the kernels of the reductions and one for the quotients.
"""

import functools

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions, overlap, row_tree
from bi_compile.templates.gpu.blocks import Blocks
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.gpu.row_view import RowView, as_rows
from bi_compile.templates.reduction.gpu import run
from bi_compile.templates.reduction.shapes import wrap_dim
from bi_compile.templates.registry import implements

_MOST_CHUNKS = 256


@triton.jit
def _quotient(x, total, LOG: tl.constexpr):
    """x: an exponential or, for LOG, its argument; `total`: the sum of the exponentials or its logarithm."""
    if LOG:
        return x - total
    else:
        return functions.divide(x, total + tl.zeros_like(x))


@triton.jit
def _least_above_zero(exponentials):
    """The least element of all that is not 0; 0 as an integer, less one, is the greatest."""
    least = tl.full(exponentials[0].shape, 0xFFFFFFFF, tl.uint32)
    for turn in tl.static_range(len(exponentials)):
        bits = exponentials[turn].to(tl.uint32, bitcast=True) - 1
        least = tl.minimum(least, bits)
    return (tl.min(tl.min(tl.min(least, 2), 1), 0) + 1).to(tl.float32, bitcast=True)


@triton.jit
def _read(
    begin, first, step, there, n, size, outer, inner,
    TWO: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """The elements of a step, -inf for absent ones, and which are there."""
    i = first + step * row_tree.LANES
    there = there & row_tree.inside(first, step, n, FULL)
    at = begin + row_tree.element_offset(i, size, outer, inner, TWO, WIDE)
    return functions.widened(row_tree.load(at, there, -float("inf"), WHOLE)), there


@triton.jit
def _exponential(x, there, WHOLE: tl.constexpr):
    """0 for absent elements; -inf less a maximum of -inf would not be."""
    y = functions.exp(x)
    return y if WHOLE else tl.where(there, y, 0.0)


@triton.jit
def _write(
    values, total, inverse, target, first, there, n, stride,
    LOG: tl.constexpr, BY_INVERSE: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    for turn in tl.static_range(len(values)):
        if BY_INVERSE:
            y = functions.divide_by(values[turn], total, inverse)
        else:
            y = _quotient(values[turn], total, LOG)
        i = first + turn * row_tree.LANES
        if WIDE:
            i = i.to(tl.int64)
        present = there & row_tree.inside(first, turn, n, FULL)
        row_tree.store(target + i * stride, functions.rounded(y, target.dtype.element_ty), present, WHOLE)


@triton.jit
def _read_and_write(
    begin, target, first, there, n, maximum, total, stride, size, outer, inner,
    LOG: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
    TWO: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """For rows that are not in registers."""
    for step in range(0, STEPS, UNROLL):
        for turn in tl.static_range(UNROLL):
            value, present = _read(
                begin, first, step + turn, there, n, size, outer, inner, TWO, WIDE, WHOLE, FULL
            )
            value = value - maximum
            y = _quotient(value if LOG else functions.exp(value), total, LOG)
            i = first + (step + turn) * row_tree.LANES
            if WIDE:
                i = i.to(tl.int64)
            y = functions.rounded(y, target.dtype.element_ty)
            row_tree.store(target + i * stride, y, present, WHOLE)


@triton.jit(do_not_specialize=["rows"])
def _softmax(
    x, out, rows, n, out_outer, out_inner,
    kept_size, kept_outer, kept_inner, element_size, element_outer, element_inner,
    LOG: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
    WHOLE: tl.constexpr, FULL: tl.constexpr, KEPT: tl.constexpr,
    KEPT_TWO: tl.constexpr, ELEMENT_TWO: tl.constexpr, WIDE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The row (a, b) of `out` begins at a * out_outer + b; its elements are out_inner apart."""
    overlap.follow(OVERLAP)
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
            value, _ = _read(
                begin, first, turn, there, n, element_size, element_outer, element_inner,
                ELEMENT_TWO, WIDE, WHOLE, FULL,
            )  # fmt: skip
            values = values + (value,)  # noqa: RUF005  (all that Triton knows)
            largest = tl.maximum(largest, value)
        maximum = tl.max(tl.max(largest, 2), 1)[:, None, None]
        shifted = ()
        for turn in tl.static_range(STEPS):
            value = values[turn] - maximum
            exponential = _exponential(value, row_tree.inside(first, turn, n, FULL), WHOLE)
            lanes += exponential
            shifted = shifted + (value if LOG else exponential,)  # noqa: RUF005
        total = row_tree.fold(lanes)
        if LOG:
            total = functions.log(total)
        total = total[:, None, None]
        if LOG or dtype == tl.float64:
            _write(shifted, total, total, target, first, there, n, out_inner, LOG, False, WIDE, WHOLE, FULL)
        else:
            inverse = functions.divide(tl.full(total.shape, 1.0, dtype), total)
            # The instructions of a division take a long way round for zeros, of which masks make many.
            if _least_above_zero(shifted) >= functions.LEAST_DIVIDED:
                _write(
                    shifted, total, inverse, target, first, there, n, out_inner, LOG, True, WIDE, WHOLE, FULL
                )
            else:
                # Seldom: a loop, that the code of the kernel stays short.
                _read_and_write(
                    begin, target, first, there, n, maximum, total, out_inner,
                    element_size, element_outer, element_inner,
                    LOG, STEPS, 1, ELEMENT_TWO, WIDE, WHOLE, FULL,
                )  # fmt: skip
    else:
        for step in range(0, STEPS, UNROLL):
            for turn in tl.static_range(UNROLL):
                value, _ = _read(
                    begin, first, step + turn, there, n, element_size, element_outer, element_inner,
                    ELEMENT_TWO, WIDE, WHOLE, FULL,
                )  # fmt: skip
                largest = tl.maximum(largest, value)
        maximum = tl.max(tl.max(largest, 2), 1)[:, None, None]
        for step in range(0, STEPS, UNROLL):
            for turn in tl.static_range(UNROLL):
                value, present = _read(
                    begin, first, step + turn, there, n, element_size, element_outer, element_inner,
                    ELEMENT_TWO, WIDE, WHOLE, FULL,
                )  # fmt: skip
                lanes += _exponential(value - maximum, present, WHOLE)
        total = row_tree.fold(lanes)
        if LOG:
            total = functions.log(total)
        _read_and_write(
            begin, target, first, there, n, maximum, total[:, None, None], out_inner,
            element_size, element_outer, element_inner,
            LOG, STEPS, UNROLL, ELEMENT_TWO, WIDE, WHOLE, FULL,
        )  # fmt: skip


@triton.jit
def _quotients(x, maxima, totals, out, count, n, inner, LOG: tl.constexpr, BLOCK: tl.constexpr):
    """Element by element, over a contiguous x of rows that are `inner` apart inside blocks of n * inner."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = i < count
    row = i // (n * inner) * inner + i % inner
    value = functions.widened(tl.load(x + i, mask=there, other=0.0))
    maximum = tl.load(maxima + row, mask=there, other=0.0)
    total = tl.load(totals + row, mask=there, other=1.0)
    value = value - maximum
    if LOG:
        total = functions.log(total)
    else:
        value = functions.exp(value)
    tl.store(out + i, functions.rounded(_quotient(value, total, LOG), out.dtype.element_ty), mask=there)


def _long(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, view = as_rows(x, [dim])
    maxima = run(rows, view, "max", keep_wide=True)
    totals = run(rows, view, "sum", element="exponential", shifts=maxima, keep_wide=True)
    block = 1024
    _quotients[(triton.cdiv(x.numel(), block),)](
        x, maxima, totals, out, x.numel(), view.n, x.stride(dim), LOG=log, BLOCK=block, **COMPILATION
    )
    return out


@functools.lru_cache(maxsize=4096)
def _launch(device: int, dtype: torch.dtype, view: RowView, stride: int, log: bool) -> Launch | None:
    """None where rows are too long for a program. stride: of the dim in the result."""
    blocks = Blocks.for_rows(view, size=dtype.itemsize, most_chunks=_MOST_CHUNKS)
    if view.n > blocks.CHUNKS * row_tree.CHUNK.value:
        return None
    numbers = {"rows": view.rows, "n": view.n, "out_outer": view.n * stride, "out_inner": stride, "LOG": log}
    arguments = {**numbers, **view.arguments(), **blocks.arguments(_softmax), **COMPILATION}
    return Launch(_softmax, (triton.cdiv(view.rows, blocks.ROWS),), arguments)


def _softmax_over(x: torch.Tensor, dim: int, log: bool) -> torch.Tensor:
    shape = x.shape
    if x.dim() == 0:
        x = x.view(1)
    dim = wrap_dim(dim, x.dim())
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return out
    rows, view = as_rows(x, [dim])
    launch = _launch(x.device.index, x.dtype, view, out.stride(dim), log)
    if launch is None:
        return _long(x, dim, log).view(shape)
    launch(rows, out)
    return out.view(shape)


@implements("softmax")
def softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _softmax_over(x, dim, log=False)


@implements("log_softmax")
def log_softmax(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _softmax_over(x, dim, log=True)
