"""Additions into rows chosen by an index.

Op
    bi_compile::embedding_grad(Tensor grad, Tensor indices, SymInt rows, SymInt padding_idx) -> Tensor
        grad [*, D] floating, indices [*] integers below `rows` -> [rows, D] in grad's dtype.
        Row r is the sum of grad[i] over all i with indices[i] == r, added one after the other in the order
        of i (row-major), in fp32 for bf16 and fp16, and rounded once; entries at `padding_idx` are left out.

Stock kernels split the indices over threads and add the parts.
"""

import torch

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.registry import define

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _fake(grad: torch.Tensor, indices: torch.Tensor, rows: int, padding_idx: int) -> torch.Tensor:
    if grad.dtype not in DTYPES:
        raise UnsupportedDtypeError("embedding_grad", str(grad.dtype), map(str, DTYPES))
    return grad.new_empty(rows, grad.shape[-1])


embedding_grad = define(
    "embedding_grad(Tensor grad, Tensor indices, SymInt rows, SymInt padding_idx) -> Tensor",
    family="scatter",
    fake=_fake,
)
