"""layer_norm and rms_norm on CUDA devices, by `gpu_kernels`: one for rows that a program takes whole.

Longer rows go through the kernels of the reductions and one for the result.
"""

import functools
from collections.abc import Sequence

import torch
import triton

from bi_compile.templates.gpu import row_tree
from bi_compile.templates.gpu.blocks import PROGRAMS, Blocks
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch
from bi_compile.templates.gpu.row_view import RowView, as_rows
from bi_compile.templates.normalization.gpu_kernels import apply, normalize
from bi_compile.templates.reduction.gpu import run
from bi_compile.templates.reduction.shapes import acc_dtype
from bi_compile.templates.registry import implements

_MOST_CHUNKS = 64
_HELD = 256
"""Bytes of elements, weights and biases that a thread holds before they are needed."""


def _long(x: torch.Tensor, rows: int, weight, bias, eps, out, rstds, *, centred: bool) -> torch.Tensor:
    """For rows beyond one program; returns the means."""
    x, view = as_rows(x.reshape(rows, x.numel() // rows), [1])
    means = run(x, view, "sum", finish="quotient", number=view.n, keep_wide=True) if centred else out
    element = "deviation" if centred else "square"
    squares = run(x, view, "sum", element=element, shifts=means if centred else None, keep_wide=True)
    blocks = triton.cdiv(view.n, 1024)
    apply[(view.rows * blocks,)](
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
    # Sums of two tensors are read twice as often, so wide reads pay for few rows, too.
    many = 0 if added else 4 * PROGRAMS
    blocks = Blocks.for_rows(view, size=dtype.itemsize, most_chunks=_MOST_CHUNKS, alike=2, many=many)
    if view.n > blocks.CHUNKS * row_tree.CHUNK.value:
        return None
    numbers = {"rows": view.rows, "n": view.n, "length": float(view.n), "inverse": 1 / view.n, "eps": eps}
    threads = 32 * blocks.num_warps
    tile = min(blocks.TILE, 8 * threads)
    tiles = triton.cdiv(view.n, tile)
    column = blocks.ROWS * dtype.itemsize + sum(p.itemsize for p in (weight, bias) if p is not None)
    if view.columns or tiles * tile * column > _HELD * threads:
        tile, tiles = min(blocks.TILE, 128 // dtype.itemsize * threads // blocks.ROWS), 0
    choices = {"ADDED": added, "CENTRED": centred, "HELD": tiles, "TILE": tile}
    choices |= {"WEIGHT": weight is not None, "BIAS": bias is not None, "EXACT": view.n & (view.n - 1) == 0}
    arguments = {**numbers, **view.arguments(), **blocks.arguments(normalize), **choices, **COMPILATION}
    return Launch(normalize, (triton.cdiv(view.rows, blocks.ROWS),), arguments)


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
