"""What every row reduction checks before it computes: dims and dtypes. Symbolic sizes stay symbolic."""

from collections.abc import Sequence

import torch

from bi_compile.errors import UnsupportedDtypeError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_dtype(op: str, x: torch.Tensor) -> None:
    """Raise UnsupportedDtypeError unless x is float32, float64, bfloat16 or float16."""
    if x.dtype not in DTYPES:
        raise UnsupportedDtypeError(op, str(x.dtype), map(str, DTYPES))


def wrap_dim(dim: int, rank: int) -> int:
    """dim counted from the front. Raises IndexError, in eager's words, when it is out of range."""
    span = max(rank, 1)
    if not -span <= dim < span:
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-span}, {span - 1}], but got {dim})"
        )
    return dim % span


def wrap_dims(x: torch.Tensor, dims: Sequence[int]) -> list[int]:
    """The reduced dims in ascending order; none given means all.

    Raises IndexError for one out of range and RuntimeError for one given twice, in eager's words.
    """
    wrapped = [wrap_dim(dim, x.dim()) for dim in dims]
    for dim in wrapped:
        if wrapped.count(dim) > 1:
            raise RuntimeError(f"dim {dim} appears multiple times in the list of dims")
    if x.dim() == 0:
        return []
    return sorted(wrapped) or list(range(x.dim()))


def reduced_shape(x: torch.Tensor, dims: Sequence[int], keepdim: bool) -> list:
    """The shape of a result: without the reduced dims, or with ones in their places."""
    reduced = wrap_dims(x, dims)
    if keepdim:
        return [1 if d in reduced else size for d, size in enumerate(x.shape)]
    return [size for d, size in enumerate(x.shape) if d not in reduced]


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype everything inside is computed in: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
