"""softmax and log_softmax in plain torch operations on the row tree.

exp and log are arguments, so that a test can pass the ones the kernels use.
"""

import torch

from bi_compile.templates.reduction import oracle
from bi_compile.templates.reduction.oracle import Function
from bi_compile.templates.reduction.shapes import acc_dtype


def softmax(x: torch.Tensor, dim: int = -1, exp: Function = torch.exp) -> torch.Tensor:
    wide = x.to(acc_dtype(x.dtype)).movedim(dim, -1)
    e = exp(wide - wide.amax(-1, keepdim=True))
    s = oracle.tree(e).unsqueeze(-1)
    return oracle.rounded(e / s, x.dtype).movedim(-1, dim)


def log_softmax(
    x: torch.Tensor, dim: int = -1, exp: Function = torch.exp, log: Function = torch.log
) -> torch.Tensor:
    wide = x.to(acc_dtype(x.dtype)).movedim(dim, -1)
    shifted = wide - wide.amax(-1, keepdim=True)
    s = oracle.tree(exp(shifted)).unsqueeze(-1)
    return oracle.rounded(shifted - log(s), x.dtype).movedim(-1, dim)
