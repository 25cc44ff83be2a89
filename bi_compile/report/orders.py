"""The order certificates of the matrix products in a graph on a CUDA device."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx

# Op -> which of its arguments is the first factor, whose last dim is summed.
_FACTOR = {"mm": 0, "bmm": 0, "linear": 0, "addmm": 1, "baddbmm": 1}


def orders(graph: fx.Graph, capability: Callable[[torch.device], int] | None = None) -> str:
    """One line for each product on a CUDA device: its node, its op and the certificate of its kernels.

    capability: of a device, 90 for Hopper; by default that of the device itself. Compiles the first shipped
    configuration: the others, among which a call chooses, have its certificate. Empty for other graphs.
    """
    lines = []
    for node in graph.nodes:
        name = getattr(node.target, "_opname", None)
        if node.op != "call_function" or name not in _FACTOR or node.target.namespace != "bi_compile":
            continue
        factor = node.args[_FACTOR[name]].meta.get("val")
        if factor is not None and factor.device.type == "cuda":
            at = (capability or _capability)(factor.device)
            lines.append(f"{node.name}  {name}  {_certificate(factor.dtype, factor.shape[-1], at)}")
    return "".join(f"{line}\n" for line in lines)


def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _certificate(dtype: torch.dtype, k: Any, capability: int) -> str:
    from bi_compile import numerics

    if dtype == torch.float64:
        return "chains of fused multiply-adds, added in order"
    chunk = numerics.contraction_gpu_chunk(dtype.itemsize)
    if isinstance(k, int):
        return _of_form(dtype, "one" if k <= chunk else "sequence", capability)
    short, long = (_of_form(dtype, form, capability) for form in ("one", "sequence"))
    return f"{short} up to K = {chunk}, {long} beyond"


@cache
def _of_form(dtype: torch.dtype, form: str, capability: int) -> str:
    from bi_compile.templates.contraction.gpu_certificates import order
    from bi_compile.templates.contraction.gpu_configs import POINTERS, POINTERS_FP32

    shipped = POINTERS_FP32 if dtype == torch.float32 else POINTERS
    try:
        # The last one is large enough for every architecture's own family of instructions.
        return str(order(shipped[-1].config, dtype, capability, form))
    except ValueError as error:
        return f"not certified: {error}"
