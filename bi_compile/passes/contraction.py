"""mm, bmm, addmm, baddbmm, mv, dot and their kin -> one contraction order."""

from typing import Any

import torch

from bi_compile.passes.complex_numbers import by_products
from bi_compile.passes.rewrite import is_floating, opmath, rewrite
from bi_compile.templates import contraction as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor


@rewrite(aten.mm.default)
@by_products
def _mm(a: Tensor, b: Tensor) -> Any:
    return bi.mm(a, b) if is_floating(a) else NotImplemented


@rewrite(aten.bmm.default)
@by_products
def _bmm(a: Tensor, b: Tensor) -> Any:
    return bi.bmm(a, b) if is_floating(a) else NotImplemented


@rewrite(aten.addmm.default)
def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return bi.addmm(c, a, b, beta=beta, alpha=alpha) if is_floating(a) else NotImplemented


@rewrite(aten.baddbmm.default)
def _baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return bi.baddbmm(c, a, b, beta=beta, alpha=alpha) if is_floating(a) else NotImplemented


@rewrite(aten.addbmm.default)
def _addbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    # The sum over the batch of products is one contraction over (batch, K).
    flat_a = a.permute(1, 0, 2).reshape(a.shape[1], -1)
    return (
        bi.addmm(c, flat_a, b.reshape(-1, b.shape[2]), beta=beta, alpha=alpha)
        if is_floating(a)
        else NotImplemented
    )


@rewrite(aten.mv.default)
def _mv(a: Tensor, x: Tensor) -> Any:
    return bi.mm(a, x.unsqueeze(1)).squeeze(1) if is_floating(a) else NotImplemented


@rewrite(aten.addmv.default)
def _addmv(c: Tensor, a: Tensor, x: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if not is_floating(a):
        return NotImplemented
    return bi.addmm(c.unsqueeze(-1), a, x.unsqueeze(1), beta=beta, alpha=alpha).squeeze(1)


@rewrite(aten.dot.default, aten.vdot.default)
def _dot(x: Tensor, y: Tensor) -> Any:
    return bi.mm(x.unsqueeze(0), y.unsqueeze(1)).reshape(()) if is_floating(x) else NotImplemented


@rewrite(aten._trilinear.default)
def _trilinear(
    x1: Tensor,
    weight: Tensor,
    x2: Tensor,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sumdim: list[int],
    unroll_dim: int = 1,
) -> Any:
    # nn.Bilinear alone: [R, 1, I, 1] x [1, O, I, J] x [R, 1, 1, J], summed over I and J.
    if not is_floating(x1) or (expand1, expand2, expand3, sumdim) != ([1, 3], [0], [1, 2], [2, 3]):
        return NotImplemented
    outputs, inner, other = weight.shape
    # Rounded once, at the end: in fp16 the products may be infinite.
    products = bi.mm(opmath(x1), opmath(weight).permute(1, 0, 2).reshape(inner, outputs * other))
    return bi.sum(products.reshape(-1, outputs, other) * opmath(x2).unsqueeze(1), [2], False).to(x1.dtype)


@rewrite(aten._grouped_mm.default)
def _grouped_mm(
    a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: torch.dtype | None = None
) -> Any:
    # Without kernels for a bias in stock PyTorch, none is made up here: the call stays, to be refused.
    if not is_floating(a) or bias is not None:
        return NotImplemented
    return bi.grouped_mm(a, b, offs).to(out_dtype or a.dtype)


REWRITES = (*_mm, *_bmm, *_addmm, *_baddbmm, *_addbmm, *_mv, *_addmv, *_dot, *_trilinear, *_grouped_mm)
