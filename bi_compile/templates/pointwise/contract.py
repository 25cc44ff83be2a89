"""Pointwise functions whose bits do not depend on where an element lies.

Ops
    bi_compile::unary(Tensor x, str name) -> Tensor
    bi_compile::binary(Tensor x, Tensor y, str name) -> Tensor
        name: a function of `functions.def`. fp32 and fp64 compute in their own precision; bf16 and fp16 are
        widened to fp32 and rounded once. x and y have one dtype and broadcastable shapes.

PyTorch's own kernels use one implementation for a vector body and another for its tail, so an element's bits
depend on its index. Here every element goes through the vector implementation. Compiled graphs do not call
these ops: Inductor inlines the same expressions into its fused loops.
"""

import torch

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.pointwise.functions import expressions
from bi_compile.templates.registry import define

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _check(name: str, x: torch.Tensor) -> None:
    if name not in expressions():
        raise ValueError(f"unknown pointwise function {name!r}")
    if x.dtype not in DTYPES:
        raise UnsupportedDtypeError(name, str(x.dtype), map(str, DTYPES))


def _fake_unary(x: torch.Tensor, name: str) -> torch.Tensor:
    _check(name, x)
    return x.new_empty(x.shape)


def _fake_binary(x: torch.Tensor, y: torch.Tensor, name: str) -> torch.Tensor:
    _check(name, x)
    torch._check(x.dtype == y.dtype, lambda: f"{name}: dtypes {x.dtype} and {y.dtype} differ")
    return x.new_empty(torch.broadcast_shapes(x.shape, y.shape))


unary = define("unary(Tensor x, str name) -> Tensor", family="pointwise", fake=_fake_unary)
binary = define("binary(Tensor x, Tensor y, str name) -> Tensor", family="pointwise", fake=_fake_binary)
