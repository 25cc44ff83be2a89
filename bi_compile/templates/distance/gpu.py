"""Distances on CUDA devices: the kernel of the row reductions on differences that are never in memory."""

import functools
import math

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions, row_tree
from bi_compile.templates.gpu.blocks import Blocks
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.gpu.row_view import RowView
from bi_compile.templates.reduction import gpu as reduction
from bi_compile.templates.reduction.shapes import acc_dtype
from bi_compile.templates.registry import implements

Tensor = torch.Tensor

_MOST_CHUNKS = 64
"""Longer rows are rare: their differences do go through memory."""


@triton.jit(do_not_specialize=["pairs", "rows", "others"])
def _distances(
    a, b, out, pairs, rows, others, n, power: tl.float64, number: tl.float64,
    a_batch, a_row, a_element, b_batch, b_row, b_element,
    KIND: tl.constexpr, ELEMENT: tl.constexpr, FINISH: tl.constexpr,
    ROWS: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """out[pair] for ROWS neighbouring pairs (batch, row of a, row of b) of rows of at most CHUNKS chunks."""
    pair = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = (pair < pairs)[:, None, None]
    batch = pair // others // rows
    from_a = a + batch * a_batch + pair // others % rows * a_row
    from_b = b + batch * b_batch + pair % others * b_row
    first = row_tree.lane_index(CHUNKS)
    wide: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    nothing = tl.zeros((ROWS,), wide)
    lanes = reduction._start(tl.zeros((ROWS, CHUNKS, row_tree.LANES), wide), KIND)
    for step in range(0, STEPS, UNROLL):
        for turn in tl.static_range(UNROLL):
            i = (first + (step + turn) * row_tree.LANES).to(tl.int64)
            inside = row_tree.inside(first, step + turn, n, FULL)
            x = tl.load(from_a[:, None, None] + i * a_element, mask=there & inside, other=0.0)
            y = tl.load(from_b[:, None, None] + i * b_element, mask=there & inside, other=0.0)
            value = functions.widened(x) - functions.widened(y)
            value = reduction._element(value, nothing[:, None, None], power, ELEMENT)
            lanes = reduction._take_in(lanes, tl.where(inside, value, reduction._identity(KIND)), KIND)
    leaves = tl.max(lanes, 2) if KIND == "max" else row_tree.fold_lanes(lanes)
    result = reduction._finished(reduction._root(leaves, KIND, wide), nothing, number, FINISH)
    tl.store(out + pair, functions.rounded(result, out.dtype.element_ty), mask=pair < pairs)


@implements("cdist")
def cdist(a: Tensor, b: Tensor, p: float) -> Tensor:
    shape = [*a.shape[:-1], b.shape[-2]]
    if a.shape[-1] == 0:
        return a.new_zeros(shape)
    if a.shape[-1] > _MOST_CHUNKS * row_tree.CHUNK.value:
        wide = acc_dtype(a.dtype)
        parts = [
            torch.ops.bi_compile.norm(row.to(wide) - b.to(wide), p, [-1], False)
            for row in a.unsqueeze(-2).unbind(-3)
        ]
        return torch.stack(parts, -2).to(a.dtype) if parts else a.new_empty(shape)
    out = a.new_empty(shape)
    if out.numel():
        a, b = (x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:]) for x in (a, b))
        _launch(a.device.index, a.dtype, a.shape, a.stride(), b.shape, b.stride(), p)(a, b, out)
    return out


@functools.lru_cache(maxsize=65536)
def _launch(
    index: int,
    dtype: torch.dtype,
    a_shape: torch.Size,
    a_strides: tuple[int, ...],
    b_shape: torch.Size,
    b_strides: tuple[int, ...],
    p: float,
) -> Launch:
    batch, rows, n = a_shape
    others = b_shape[1]
    pairs = batch * rows * others
    blocks = Blocks.for_rows(
        RowView.of(torch.Size((pairs, n)), (n, 1), (1,)),  # type: ignore[arg-type]
        size=dtype.itemsize,
        most_chunks=_MOST_CHUNKS,
    )
    kind, element, finish = reduction.parts_of_norm(p)
    arguments = {
        "pairs": pairs, "rows": rows, "others": others, "n": n, "power": p, "number": 1 / p if p else 0.0,
        **dict(zip(("a_batch", "a_row", "a_element"), a_strides, strict=True)),
        **dict(zip(("b_batch", "b_row", "b_element"), b_strides, strict=True)),
        "KIND": kind, "ELEMENT": element, "FINISH": finish, **blocks.arguments(_distances), **COMPILATION,
    }  # fmt: skip
    return Launch(_distances, (triton.cdiv(pairs, blocks.ROWS),), arguments)
