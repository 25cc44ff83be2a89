"""Convolutions in one to three dimensions, transposed ones too, with one order of summation.

Op (fp32, fp64, bf16, fp16; one dtype for all tensors of a call; any strides)
    bi_compile::convolution(Tensor x, Tensor w, Tensor? bias, SymInt[] stride, SymInt[] padding,
        SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor
        x [N, C, *size], w [M, C / groups, *kernel] or, transposed, [C, M / groups, *kernel], bias [M]
        -> [N, M, *out], contiguous whatever the layout of x. The lists have one value a spatial dimension.

The tree of one output element, whatever N, its position in the batch, strides, threads and instruction set
    1. The products of an output are numbered by (input channel of the group, tap), taps row-major over the
       kernel: the order in which the weights of one output channel lie in memory, so they are read in place.
       All taps count, those that fall on padding too: padding is zeros, multiplied like any others, so a
       convolution with padding has the bits of the same one without on an input padded by zeros, and an
       infinite weight over padding makes NaN.
       Transposed: the taps of an output are those that meet an element of x or of its surroundings, that is
       o + padding - tap * dilation is a multiple of the stride in every dimension. Elements beyond the edges
       are zeros and multiplied; what the stride leaves between elements is no element and is not.
    2. The sum is the tree of a contraction: chunks of `numerics.CONTRACTION_CHUNK` products from the first,
       each one chain of fused multiply-adds from +0 rounded to nearest even with subnormals kept, and a
       balanced tree over the chunks (`numerics.tree_levels`). bf16 and fp16 are widened to fp32 and take the
       same chain: a convolution in bf16 has no pairs, unlike `mm`.
    3. + bias, rounded; then one rounding to the dtype. Every NaN is the same quiet NaN.

On CUDA devices step 3 is the same, and so is all of it for depthwise convolutions: one input channel a group,
several groups and at most `numerics.CONTRACTION_CHUNK` taps. Otherwise products are numbered there by (tap,
input channel), and step 2 is the tree of `bi_compile::mm` in every dtype, of weights [outputs, K] x windows
[K, positions] (see templates/contraction); `gpu_oracle.py` spells it.

Raises UnsupportedDtypeError for other dtypes.
"""

from collections.abc import Sequence
from typing import Any

import torch

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.registry import define

Tensor = torch.Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _fake(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    transposed: bool,
    output_padding: Sequence[Any],
    groups: Any,
) -> Tensor:
    dtypes = [t.dtype for t in (x, w, bias) if t is not None]
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UnsupportedDtypeError("convolution", str(dtype), map(str, DTYPES))
    torch._check(
        len(set(dtypes)) == 1, lambda: f"convolution: expected one dtype, got {', '.join(map(str, dtypes))}"
    )
    torch._check(
        3 <= x.dim() <= 5 and w.dim() == x.dim(),
        lambda: (
            "convolution: expected an input of 3 to 5 dimensions and a weight of as many, "
            f"got {x.dim()}-D and {w.dim()}-D"
        ),
    )
    fits = x.shape[1] == (w.shape[0] if transposed else w.shape[1] * groups)
    torch._check(
        fits and w.shape[0] % groups == 0,
        lambda: (
            f"convolution: input {list(x.shape)} and weight {list(w.shape)} do not fit with groups={groups}"
        ),
    )
    sizes = []
    for size, kernel, s, p, d, extra in zip(
        x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding, strict=True
    ):
        span = d * (kernel - 1) + 1
        if transposed:
            sizes.append((size - 1) * s - 2 * p + span + extra)
            continue
        torch._check(
            size + 2 * p >= span,
            lambda: (
                f"convolution: input {list(x.shape)} is smaller than the kernel of weight {list(w.shape)}"
            ),
        )
        sizes.append((size + 2 * p - span) // s + 1)
    return x.new_empty((x.shape[0], w.shape[1] * groups if transposed else w.shape[0], *sizes))


convolution = define(
    "convolution(Tensor x, Tensor w, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
    "bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor",
    family="convolution",
    fake=_fake,
)
