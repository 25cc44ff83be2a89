"""The tree of convolutions on CUDA devices, spelled in plain torch ops, for bf16, fp16 and fp32.

The windows are the other oracle's, the products those of contractions on CUDA devices.
"""

from typing import Any

import torch

from bi_compile.templates.contraction import gpu_oracle as contraction
from bi_compile.templates.convolution import oracle

Tensor = torch.Tensor


def convolution(x: Tensor, *arguments: Any) -> Tensor:
    """The arguments are those of the op."""

    def products(weights: Tensor, windows: Tensor) -> Tensor:
        pairs = zip(weights.to(x.dtype), windows.to(x.dtype), strict=True)
        return torch.stack([contraction.sums(a, b) for a, b in pairs])

    return oracle.convolution(x, *arguments, products=products)
