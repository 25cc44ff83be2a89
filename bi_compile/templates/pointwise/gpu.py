"""Pointwise functions of eager calls on CUDA devices: each a kernel around one of `gpu_functions`'
expressions."""

import functools
import linecache

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.pointwise.gpu_functions import expression
from bi_compile.templates.registry import implements

_BLOCK = 1024
_SOURCE = """
def kernel(px, py, out, count, BINARY: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(px + at, mask=at < count, other=1.0).to({wide})
    if BINARY:
        y = tl.load(py + at, mask=at < count, other=1.0).to({wide})
    tl.store(out + at, ({expression}).to(out.dtype.element_ty), mask=at < count)
"""


@functools.cache
def _kernel(name: str, double: bool):
    source = _SOURCE.format(
        wide="tl.float64" if double else "tl.float32", expression=expression(name, "x", "y", double=double)
    )
    # Triton reads the source of a function: this is where Python looks for one that stands in no file.
    file = f"<bi_compile {name} {'float64' if double else 'float32'}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    scope = {"tl": tl, "triton": triton, "libdevice": libdevice, "__name__": __name__}
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope["kernel"])


def _apply(name: str, x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        _kernel(name, x.dtype == torch.float64)[(triton.cdiv(x.numel(), _BLOCK),)](
            x, x if y is None else y, out, x.numel(), BINARY=y is not None, BLOCK=_BLOCK, **COMPILATION
        )
    return out


@implements("unary")
def unary(x: torch.Tensor, name: str) -> torch.Tensor:
    return _apply(name, x.contiguous(), None)


@implements("binary")
def binary(x: torch.Tensor, y: torch.Tensor, name: str) -> torch.Tensor:
    # A number may arrive as a tensor without dims.
    x, y = torch.broadcast_tensors(x, y)
    return _apply(name, x.contiguous(), y.contiguous())
