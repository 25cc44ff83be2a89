"""The steps of a reduction by index, read off what the compiler makes of it; no GPU is needed."""

import torch

from bi_compile.templates.gpu.ahead import NAMES, compile_kernel
from bi_compile.templates.gpu.steps import Steps, certified
from bi_compile.templates.scatter.gpu import _BLOCK, _chains


def order(op: str, dtype: torch.dtype, capability: int) -> Steps:
    """Of sums. Raises ValueError where their steps leave an order open."""
    types = dict.fromkeys(("count", "columns", "slots", "length"), "i32")
    types |= dict.fromkeys(("x", "src", "out"), f"*{NAMES[dtype]}")
    types |= dict.fromkeys(("order", "starts"), "*i64")
    constants = {"REDUCE": "sum", "INCLUDE_SELF": True, "ALIKE": True, "BLOCK": _BLOCK}
    return certified(compile_kernel(_chains, capability, types, constants, num_warps=4, num_stages=3))
