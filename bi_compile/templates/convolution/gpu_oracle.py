"""The tree of convolutions on CUDA devices, spelled in plain torch ops, for bf16, fp16 and fp32.

The windows are the other oracle's, in another order, the products those of contractions on CUDA devices.
Depthwise convolutions are the other oracle's altogether.
"""

from typing import Any

import torch

from bi_compile import numerics
from bi_compile.templates.contraction import gpu_oracle as contraction
from bi_compile.templates.convolution import oracle

Tensor = torch.Tensor


def convolution(x: Tensor, w: Tensor, *arguments: Any) -> Tensor:
    """The arguments are those of the op."""
    groups = arguments[-1]
    if x.shape[1] == groups > 1 and w.shape[2:].numel() <= numerics.CONTRACTION_CHUNK:
        return oracle.convolution(x, w, *arguments)

    def products(weights: Tensor, windows: Tensor) -> Tensor:
        pairs = zip(weights.to(x.dtype), windows.to(x.dtype), strict=True)
        return torch.stack([contraction.sums(a, b) for a, b in pairs])

    return oracle.convolution(x, w, *arguments, products=products, taps_first=True)
