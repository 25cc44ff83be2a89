"""Additions into rows by index -> one order of additions."""

from typing import Any

import torch

from bi_compile.passes.rewrite import rewrite
from bi_compile.templates import scatter as _  # noqa: F401  (defines the ops)

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor


@rewrite(aten.embedding_dense_backward.default)
def _embedding_dense_backward(
    grad: Tensor, indices: Tensor, rows: int, padding_idx: int, scale_grad_by_freq: bool
) -> Any:
    if scale_grad_by_freq:
        return NotImplemented
    return bi.embedding_grad(grad, indices, rows, padding_idx)


REWRITES = _embedding_dense_backward
