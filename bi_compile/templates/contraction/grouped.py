"""Products of groups of rows with a matrix each, as in mixtures of experts: the tree of `mm`, group by group.

Op
    bi_compile::grouped_mm(Tensor a, Tensor b, Tensor? offs) -> Tensor
        a, b: of one dtype, those of `mm`; offs: int32 or int64 [G], the end of each group, ascending.
        [T, K] x [G, K, N] -> [T, N]: rows offs[g - 1] to offs[g] of a meet matrix g of b
        [G, M, K] x [K, T] -> [M, T]: the same for columns of b
        [M, T] x [T, N] -> [G, M, N]: the groups cut the summed dim
        [G, M, K] x [G, K, N] -> [G, M, N]: `bmm`; offs is None
    The arguments are those of torch.nn.functional.grouped_mm.

An element has the bits of `mm` of its own group, so neither the groups' sizes nor their number show in it.
Rows and columns behind the last group, which PyTorch leaves undefined, are zero.
Raises UnsupportedDtypeError as `mm` does.
"""

from typing import Any

import torch

from bi_compile.templates.contraction.contract import check_dtypes
from bi_compile.templates.registry import define

Tensor = torch.Tensor


def _shape_of(a: Tensor, b: Tensor, offs: Tensor | None) -> tuple[int, ...]:
    check_dtypes("grouped_mm", a, b)
    ranks = (a.dim(), b.dim())
    torch._check(
        set(ranks) <= {2, 3} and (offs is None) == (ranks == (3, 3)),
        lambda: f"grouped_mm: expected 2-D or 3-D tensors, and offs unless both are 3-D, got {ranks}",
    )
    torch._check(
        a.shape[-1] == b.shape[-2],
        lambda: f"grouped_mm: shapes {list(a.shape)} and {list(b.shape)} cannot be multiplied",
    )
    groups = [x.shape[0] for x in (a, b) if x.dim() == 3] + ([] if offs is None else [offs.shape[0]])
    for group in groups:
        torch._check(group == groups[0], lambda: f"grouped_mm: expected one number of groups, got {groups}")
    leading = groups[:1] if a.dim() == b.dim() else []
    return (*leading, a.shape[-2], b.shape[-1])


def _fake(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor:
    return a.new_empty(_shape_of(a, b, offs))


def _on_cpu(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor:
    out = a.new_zeros(_shape_of(a, b, offs))
    if offs is None:
        return torch.ops.bi_compile.bmm(a, b)
    begin = 0
    for group, end in enumerate(offs.tolist()):
        if a.dim() == 2 and b.dim() == 3:
            left, right, place = a[begin:end], b[group], out[begin:end]
        elif a.dim() == 3:
            left, right, place = a[group], b[:, begin:end], out[:, begin:end]
        else:
            left, right, place = a[:, begin:end], b[begin:end], out[group]
        if place.numel():
            place.copy_(torch.ops.bi_compile.mm(left, right))
        begin = end
    return out


grouped_mm_op = define(
    "grouped_mm(Tensor a, Tensor b, Tensor? offs) -> Tensor", family="contraction", fake=_fake, on_cpu=_on_cpu
)


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b, *(() if offs is None else (offs,)))
        return grouped_mm_op(a, b, offs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        a, b, *rest = ctx.saved_tensors
        offs = rest[0] if rest else None
        needs_a, needs_b, _ = ctx.needs_input_grad
        grad_a = _GroupedProduct.apply(grad, b.mT, offs) if needs_a else None
        grad_b = _GroupedProduct.apply(a.mT, grad, offs) if needs_b else None
        return grad_a, grad_b, None


def grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None) -> Tensor:
    """Products of groups, with gradients. Shapes and the tree stand above."""
    check_dtypes("grouped_mm", a, b)
    return _GroupedProduct.apply(a, b, offs)
