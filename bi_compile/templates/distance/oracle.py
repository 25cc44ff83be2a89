"""The distances as norms of differences, spelled out."""

from collections.abc import Callable

import torch

from bi_compile.templates.reduction import oracle
from bi_compile.templates.reduction.shapes import acc_dtype


def cdist(a: torch.Tensor, b: torch.Tensor, p: float, pow: Callable = torch.pow) -> torch.Tensor:
    wide = acc_dtype(a.dtype)
    differences = a.to(wide).unsqueeze(-2) - b.to(wide).unsqueeze(-3)
    if a.shape[-1] == 0:
        return a.new_zeros(differences.shape[:-1])
    return oracle.rounded(oracle.norm(differences, p, pow), a.dtype)
