"""The steps of a reduction, read off what the compiler makes of it; no GPU is needed."""

import torch

from bi_compile.templates.gpu.ahead import compile_launch
from bi_compile.templates.gpu.row_view import Dims, RowView
from bi_compile.templates.gpu.steps import Steps, certified
from bi_compile.templates.reduction.gpu import _launches
from bi_compile.templates.reduction.shapes import acc_dtype

ROWS = RowView(1024, 2048, Dims((1024,), (2048,)), Dims((2048,), (1,)))
"""Rows side by side: their number and length change no step."""

_PARTS = {
    "prod": ("prod", "itself", "none"),
    "amax": ("max", "itself", "none"), "argmax": ("max", "itself", "none"),
    "amin": ("min", "itself", "none"), "argmin": ("min", "itself", "none"),
    "mean": ("sum", "itself", "quotient"),
    "var": ("sum", "deviation", "quotient"), "var_mean": ("sum", "deviation", "quotient"),
    "norm": ("sum", "square", "root"), "logsumexp": ("sum", "exponential", "logarithm"),
}  # fmt: skip


def order(op: str, dtype: torch.dtype, capability: int) -> Steps:
    """The steps of what a reduction launches first. Raises ValueError where these leave an order open."""
    kind, element, finish = _PARTS.get(op, ("sum", "itself", "none"))
    shifted = element in ("deviation", "exponential")
    launches = _launches(0, dtype, dtype, ROWS, kind, element, finish, 0.0, 1.0, shifted)
    wide = acc_dtype(dtype) if shifted else dtype
    return certified(compile_launch(launches[0][0], capability, dtype, wide, dtype))
