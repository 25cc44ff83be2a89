"""The steps of distances, read off what the compiler makes of them; no GPU is needed."""

import torch

from bi_compile.templates.distance.gpu import _launch
from bi_compile.templates.gpu.ahead import compile_launch
from bi_compile.templates.gpu.steps import Steps, certified


def order(op: str, dtype: torch.dtype, capability: int) -> Steps:
    """Of distances with p = 2. Raises ValueError where they leave an order open."""
    shape, strides = torch.Size((1, 32, 2048)), (32 * 2048, 2048, 1)
    launch = _launch(0, dtype, shape, strides, shape, strides, 2.0)
    return certified(compile_launch(launch, capability, dtype, dtype, dtype))
