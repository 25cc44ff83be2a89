"""The steps of a norm, read off what the compiler makes of it; no GPU is needed."""

import torch

from bi_compile.templates.gpu.ahead import compile_launch
from bi_compile.templates.gpu.steps import Steps, certified
from bi_compile.templates.normalization.gpu import _launch
from bi_compile.templates.reduction.gpu_certificates import ROWS
from bi_compile.templates.reduction.shapes import acc_dtype


def order(op: str, dtype: torch.dtype, capability: int) -> Steps:
    """op: such as "added_rms_norm". Raises ValueError where its steps leave an order open."""
    centred = op.endswith("layer_norm")
    statistics = dtype if centred else acc_dtype(dtype)
    bias = dtype if centred else None
    launch = _launch(0, dtype, statistics, ROWS, dtype, bias, 1e-5, centred, op.startswith("added"))
    assert launch is not None
    tensors = (*[dtype] * 6, statistics, statistics)
    return certified(compile_launch(launch, capability, *tensors))
