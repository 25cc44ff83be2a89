"""Scans on CUDA devices: a thread walks a line, element after element.

The chain is what has to be kept, so a line takes its time however few there are; the elements of the next
steps are read while those of the last ones are added.
"""

import torch
import triton
import triton.language as tl

from bi_compile.templates.gpu import functions
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.reduction.shapes import wrap_dim
from bi_compile.templates.registry import implements

_LINES = 32
"""Of one program: a thread each."""

_AHEAD = 16
"""Elements read before they are needed."""


@triton.jit
def _step(state, element, KIND: tl.constexpr):
    if KIND == "sum":
        return state + element
    elif KIND == "prod":
        return state * element
    else:
        larger = tl.where(state > element, state, element)
        total = larger + functions.log1p(functions.exp(-tl.abs(state - element)))
        return tl.where((state == element) & (tl.abs(state) == float("inf")), larger, total)


@triton.jit(do_not_specialize=["lines", "n"])
def _scan(
    x, out, lines, n, stride,
    KIND: tl.constexpr, LINES: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Line (a, b) of contiguous x and out begins at a * n * stride + b; its elements are `stride` apart."""
    line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)
    there = line < lines
    begin = (line // stride) * n * stride + line % stride
    dtype: tl.constexpr = functions.widened(tl.zeros((1,), x.dtype.element_ty)).dtype
    identity: tl.constexpr = 0.0 if KIND == "sum" else 1.0 if KIND == "prod" else -float("inf")
    state = tl.full((LINES,), identity, dtype)
    for start in range(0, n, AHEAD):
        first = tl.zeros_like(line) + start
        elements = ()
        for turn in tl.static_range(AHEAD):
            mask = there & (start + turn < n)
            at = begin + (first + turn) * stride
            elements = elements + (tl.load(x + at, mask=mask, other=0.0),)  # noqa: RUF005
        for turn in tl.static_range(AHEAD):
            state = _step(state, functions.widened(elements[turn]), KIND)
            at = begin + (first + turn) * stride
            value = functions.rounded(state, out.dtype.element_ty)
            tl.store(out + at, value, mask=there & (start + turn < n))


def _scanned(x: torch.Tensor, dim: int, kind: str) -> torch.Tensor:
    dim = wrap_dim(dim, x.dim())
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    n, stride = (x.shape[dim], x.stride(dim)) if x.dim() else (1, 1)
    lines = x.numel() // n
    _scan[(triton.cdiv(lines, _LINES),)](
        x, out, lines, n, stride, KIND=kind, LINES=_LINES, AHEAD=_AHEAD, num_warps=1, **COMPILATION
    )
    return out


@implements("cumsum")
def cumsum(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _scanned(x, dim, "sum")


@implements("cumprod")
def cumprod(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _scanned(x, dim, "prod")


@implements("logcumsumexp")
def logcumsumexp(x: torch.Tensor, dim: int) -> torch.Tensor:
    return _scanned(x, dim, "logsumexp")
