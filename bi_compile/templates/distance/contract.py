"""Distances between all pairs of rows: `bi_compile::norm` of their differences, without these in memory.

Op (a, b: float32, float64, bfloat16 or float16 alike, any strides; a contiguous result of their dtype)
    bi_compile::cdist(Tensor a, Tensor b, float p) -> Tensor      a [*, P, M], b [*, R, M] -> [*, P, R]

Element (i, j) is the norm of order p of a[i] - b[j] by the tree of the row reductions (templates/reduction):
the difference and everything inside in float32 (float64 for float64), each operation rounded, one rounding at
the end. So it depends on its two rows alone. Without elements it is 0.

Eager PyTorch takes products of matrices instead where one of the two has more than 25 rows.

Raises UnsupportedDtypeError for other dtypes and ValueError for shapes that do not fit or a negative p.
"""

import torch

from bi_compile.templates.reduction.shapes import check_dtype
from bi_compile.templates.registry import define


def _fake(a: torch.Tensor, b: torch.Tensor, p: float) -> torch.Tensor:
    check_dtype("cdist", a)
    if a.dim() < 2 or a.dim() != b.dim() or a.dtype != b.dtype:
        raise ValueError(f"cdist needs two tensors of rows of one dtype, got {_form(a)} and {_form(b)}")
    if p < 0:
        raise ValueError(f"cdist needs a p that is not negative, got {p}")
    return a.new_empty([*a.shape[:-1], b.shape[-2]])


def _form(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"


cdist_op = define("cdist(Tensor a, Tensor b, float p) -> Tensor", family="distance", fake=_fake)


def cdist(a: torch.Tensor, b: torch.Tensor, p: float = 2.0) -> torch.Tensor:
    """The distances of order p from the rows of a to the rows of b."""
    check_dtype("cdist", a)
    return cdist_op(a, b, float(p))
