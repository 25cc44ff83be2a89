"""The tree of the row reductions in plain torch operations: slow, and equal to the kernels bit for bit.

Every function takes rows: the reduced dims flattened to the last one by `as_rows`, widened to the dtype of
the computation. exp, log and pow are arguments, so that a test can pass the ones the kernels use.
"""

import math
from collections.abc import Callable, Sequence

import torch

from bi_compile.numerics import REDUCTION_CHUNK, REDUCTION_LANES, tree_levels
from bi_compile.templates.reduction.shapes import acc_dtype, wrap_dims

Function = Callable[[torch.Tensor], torch.Tensor]


def as_rows(x: torch.Tensor, dims: Sequence[int] = ()) -> torch.Tensor:
    """x widened to float32 (float64 stays), the reduced dims flattened in ascending order to the last one."""
    reduced = wrap_dims(x, dims)
    kept = [d for d in range(x.dim()) if d not in reduced]
    moved = x.to(acc_dtype(x.dtype)).permute(*kept, *reduced)
    n = 1
    for d in reduced:
        n *= x.shape[d]
    return moved.reshape([x.shape[d] for d in kept] + [n])


def canonical(x: torch.Tensor) -> torch.Tensor:
    """x with every NaN replaced by the one quiet NaN."""
    return torch.where(x.isnan(), torch.nan, x)


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The one rounding of a result. torch's own conversions give NaNs of several payloads."""
    return canonical(x.to(dtype))


def sqrt(x: torch.Tensor) -> torch.Tensor:
    """The correctly rounded root: torch.sqrt is not, where MKL computes it."""
    return x.clone().apply_(math.sqrt)


def tree(rows: torch.Tensor, combine: Callable = torch.add, identity: float = 0.0) -> torch.Tensor:
    """Reduce the last dim: [..., n] -> [...]."""
    n = rows.shape[-1]
    chunks = 2 ** tree_levels(-(-n // REDUCTION_CHUNK))
    padding = rows.new_full((*rows.shape[:-1], chunks * REDUCTION_CHUNK - n), identity)
    steps = torch.cat([rows, padding], -1).unflatten(-1, (chunks, -1, REDUCTION_LANES))
    lanes = torch.full_like(steps[..., 0, :], identity)
    for step in range(steps.shape[-2]):
        lanes = combine(lanes, steps[..., step, :])
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, -1)
        lanes = combine(low, high)
    leaves = lanes[..., 0]
    while leaves.shape[-1] > 1:
        leaves = combine(leaves[..., ::2], leaves[..., 1::2])
    return leaves[..., 0]


def sum(rows: torch.Tensor) -> torch.Tensor:
    return canonical(tree(rows))


def prod(rows: torch.Tensor) -> torch.Tensor:
    return canonical(tree(rows, torch.mul, 1.0))


def mean(rows: torch.Tensor) -> torch.Tensor:
    return canonical(tree(rows) / rows.new_tensor(rows.shape[-1]))


def var(rows: torch.Tensor, correction: float = 1.0) -> torch.Tensor:
    d = rows - mean(rows).unsqueeze(-1)
    return canonical(tree(d * d) / rows.new_tensor(max(0.0, rows.shape[-1] - correction)))


def amax(rows: torch.Tensor) -> torch.Tensor:
    largest = rows.amax(-1)
    any_positive_zero = ((rows == 0) & ~rows.signbit()).any(-1)
    zero = torch.where(any_positive_zero, 0.0, -0.0).to(rows.dtype)
    return canonical(torch.where(largest == 0, zero, largest))


def amin(rows: torch.Tensor) -> torch.Tensor:
    return canonical(-amax(-rows))


def argmax(rows: torch.Tensor) -> torch.Tensor:
    return ((rows == rows.amax(-1, keepdim=True)) | rows.isnan()).int().argmax(-1)


def argmin(rows: torch.Tensor) -> torch.Tensor:
    return argmax(-rows)


def norm(rows: torch.Tensor, ord: float = 2.0, pow: Callable = torch.pow) -> torch.Tensor:
    if ord == float("inf"):
        return amax(rows.abs())
    if ord == -float("inf"):
        return amin(rows.abs())
    if ord == 0:
        return sum((rows != 0).to(rows.dtype))
    if ord == 1:
        return sum(rows.abs())
    if ord == 2:
        return canonical(sqrt(tree(rows * rows)))
    return canonical(pow(tree(pow(rows.abs(), ord)), 1 / ord))


def logsumexp(rows: torch.Tensor, exp: Function = torch.exp, log: Function = torch.log) -> torch.Tensor:
    m = amax(rows) if rows.shape[-1] else rows.new_full(rows.shape[:-1], -torch.inf)
    m = torch.where(m.isinf(), 0.0, m)
    return canonical(log(tree(exp(rows - m.unsqueeze(-1)))) + m)
