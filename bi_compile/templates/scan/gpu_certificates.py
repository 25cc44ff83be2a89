"""The steps of a scan, read off what the compiler makes of it; no GPU is needed."""

import torch

from bi_compile.templates.gpu.ahead import NAMES, compile_kernel
from bi_compile.templates.gpu.steps import Steps, certified
from bi_compile.templates.scan.gpu import _AHEAD, _LINES, _scan

_KINDS = {"cumsum": "sum", "cumprod": "prod", "logcumsumexp": "logsumexp"}


def order(op: str, dtype: torch.dtype, capability: int) -> Steps:
    """op: one of _KINDS. Raises ValueError where its steps leave an order open."""
    types = dict.fromkeys(("lines", "n", "stride"), "i32") | dict.fromkeys(("x", "out"), f"*{NAMES[dtype]}")
    constants = {"KIND": _KINDS[op], "LINES": _LINES, "AHEAD": _AHEAD}
    return certified(compile_kernel(_scan, capability, types, constants, num_warps=1, num_stages=3))
