"""Which elements survive dropout: noise from a counter, keyed by a seed and by the sample's own bits.

Op (x: float32, float64, bfloat16 or float16, any strides; seed: int64[1]; a contiguous bool like x)
    bi_compile::dropout_mask(Tensor x, Tensor seed, float p, int dim=-1, int rows=-1) -> Tensor

dim holds the batch, and `rows` neighbours along it belong to one sample: 1, or S where the dim is B*S.
rows = 0 takes all of x for one sample. -1, which tracing leaves, says that nobody knows yet: refused.

With i = 0, 1, ... the place of an element in its sample (row-major, without the batch), modulo 2^64:

    key = mix(seed + sum over i of mix(bits of x[i], sign-extended, + (i + 1) * WEYL))
    element i survives where the upper 32 bits of mix(key + (i + 1) * WEYL) are at least p * 2^32, rounded

So what survives depends on the seed and the sample alone, neither on its place in the batch nor on the
others, and integers have no order of addition. Samples of the same bits lose the same elements. mix is the
finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

Raises UnsupportedDtypeError for other dtypes, ValueError for p outside 0 .. 1 and a batch that is not known.
"""

import torch

from bi_compile.templates.reduction.shapes import check_dtype
from bi_compile.templates.registry import define


def _fake(x: torch.Tensor, seed: torch.Tensor, p: float, dim: int = -1, rows: int = -1) -> torch.Tensor:
    check_dtype("dropout_mask", x)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return x.new_empty(x.shape, dtype=torch.bool)


dropout_mask_op = define(
    "dropout_mask(Tensor x, Tensor seed, float p, int dim=-1, int rows=-1) -> Tensor",
    family="dropout",
    fake=_fake,
)


def dropout_mask(
    x: torch.Tensor, seed: torch.Tensor, p: float, dim: int = -1, rows: int = -1
) -> torch.Tensor:
    """True where an element of x survives dropout with probability p of losing it."""
    check_dtype("dropout_mask", x)
    return dropout_mask_op(x, seed, p, dim, rows)
