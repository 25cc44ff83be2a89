"""The steps of a softmax, read off what the compiler makes of it; no GPU is needed."""

import torch

from bi_compile.templates.gpu.ahead import compile_launch
from bi_compile.templates.gpu.steps import Steps, certified
from bi_compile.templates.reduction.gpu_certificates import ROWS
from bi_compile.templates.softmax.gpu import _launch


def order(op: str, dtype: torch.dtype, capability: int) -> Steps:
    """op: "softmax" or "log_softmax". Raises ValueError where they leave an order open."""
    launch = _launch(0, dtype, ROWS, 1, op == "log_softmax")
    assert launch is not None
    return certified(compile_launch(launch, capability, dtype, dtype))
