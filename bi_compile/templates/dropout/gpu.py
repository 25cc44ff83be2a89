"""The noise of dropout on CUDA devices: PyTorch's operations on integers, exact in any order."""

import torch

from bi_compile.templates.dropout import oracle
from bi_compile.templates.registry import implements


@implements("dropout_mask")
def dropout_mask(
    x: torch.Tensor, seed: torch.Tensor, p: float, dim: int = -1, rows: int = -1
) -> torch.Tensor:
    if rows < 0:
        raise ValueError("bi_compile: dropout_mask does not know where the batch is")
    return oracle.dropout_mask(x, seed, p, dim, rows)
