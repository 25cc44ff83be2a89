"""layer_norm and rms_norm as plain torch operations, run one by one on the row tree."""

import torch

from bi_compile.templates.reduction import oracle
from bi_compile.templates.reduction.shapes import acc_dtype


def _affine(y: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y


def _sum(x: torch.Tensor, rank: int) -> torch.Tensor:
    """Over the last `rank` dims, kept as ones."""
    return oracle.tree(x.flatten(-rank))[(..., *[None] * rank)]


def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    """y, mean, rstd; mean and rstd in the dtype of the computation."""
    rank = len(normalized_shape)
    wide = x.to(acc_dtype(x.dtype))
    n = wide.new_tensor(wide.flatten(-rank).shape[-1])
    mean = _sum(wide, rank) / n
    d = wide - mean
    rstd = 1 / oracle.sqrt(_sum(d * d, rank) / n + wide.new_tensor(eps))
    return (
        oracle.rounded(_affine(d * rstd, weight, bias), x.dtype),
        oracle.canonical(mean),
        oracle.canonical(rstd),
    )


def rms_norm(x, normalized_shape, weight=None, eps=1e-6):
    """y, rstd; rstd in the dtype of the computation."""
    rank = len(normalized_shape)
    wide = x.to(acc_dtype(x.dtype))
    n = wide.new_tensor(wide.flatten(-rank).shape[-1])
    rstd = 1 / oracle.sqrt(_sum(wide * wide, rank) / n + wide.new_tensor(eps))
    return oracle.rounded(_affine(wide * rstd, weight, None), x.dtype), oracle.canonical(rstd)
