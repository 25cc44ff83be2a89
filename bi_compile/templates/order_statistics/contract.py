"""The k largest or smallest elements along a dim, with one rule for ties.

Op (x: float32, float64, bfloat16, float16, int64, int32, int16, int8 or uint8; any shape and strides)
    bi_compile::topk(Tensor x, SymInt k, int dim, bool largest) -> (Tensor values, Tensor indices)

The results are the first k of a stable sort along dim, descending for `largest` and ascending otherwise: of
equal elements the one of lower index comes first, NaN is greater than everything, the two zeros are equal.
Values are copies, bit for bit; indices are int64; both are contiguous, with k in the place of dim's size.
Nothing is rounded, and nothing but the row decides. Eager PyTorch leaves the order of ties open.

Raises UnsupportedDtypeError for other dtypes, IndexError for a dim out of range and RuntimeError for a k
larger than the row.
"""

import torch

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.reduction.shapes import wrap_dim
from bi_compile.templates.registry import define

DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
)  # fmt: skip


def _check_dtype(x: torch.Tensor) -> None:
    if x.dtype not in DTYPES:
        raise UnsupportedDtypeError("topk", str(x.dtype), map(str, DTYPES))


def _fake(x: torch.Tensor, k: int, dim: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    _check_dtype(x)
    shape: list = list(x.shape)
    dim = wrap_dim(dim, x.dim())
    size = shape[dim] if shape else 1
    # Symbolic sizes are left to the kernel: asking would specialise them.
    if isinstance(size, int) and isinstance(k, int) and not 0 <= k <= size:
        raise RuntimeError("selected index k out of range")
    if shape:
        shape[dim] = k
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


topk_op = define(
    "topk(Tensor x, SymInt k, int dim, bool largest) -> (Tensor, Tensor)",
    family="order_statistics",
    fake=_fake,
)


def topk(x: torch.Tensor, k: int, dim: int = -1, largest: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest (or smallest) elements along dim, best first, and their indices."""
    _check_dtype(x)
    return topk_op(x, k, dim, largest)
