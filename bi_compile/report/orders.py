"""The order certificates of the ops of a graph on a CUDA device.

Nothing is compiled, and Triton is not imported, before somebody asks for one.
"""

import importlib
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import fx

from bi_compile import numerics
from bi_compile.report import Graph, Kernel

# Op -> which of its arguments is the first factor, whose last dim is summed.
_FACTOR = {"mm": 0, "bmm": 0, "linear": 0, "addmm": 1, "baddbmm": 1, "grouped_mm": 0}
# Families whose ops have certificates by `steps` and nothing else to tell them by.
_BY_STEPS = ("distance", "normalization", "reduction", "scan", "scatter", "softmax")


def kernel_of(node: fx.Node, capability: Callable[[torch.device], int] | None = None) -> Kernel | None:
    """What decides the certificate of a node; None for what sums nothing, or not on a CUDA device.

    capability: of a device, 90 for Hopper; by default that of the device itself.
    """
    from bi_compile.templates import registry

    name = getattr(node.target, "_opname", "")
    if node.op != "call_function" or getattr(node.target, "namespace", "") != "bi_compile":
        return None
    family = registry.ops().get(name, "")
    if family not in (*_BY_STEPS, "attention", "contraction", "convolution"):
        return None
    x: Any = node.args[_FACTOR.get(name, 0)]
    x = x.meta.get("val") if isinstance(x, fx.Node) else None
    if not isinstance(x, torch.Tensor) or x.device.type != "cuda":
        return None
    if capability is None and not torch.cuda.is_available():
        return None
    form, length = "", None
    if family == "contraction":
        length = x.shape[-1]
        if name == "grouped_mm":
            form = _cut(x, node.args[1])
    elif family == "attention":
        length = x.shape[-1]
    elif family == "convolution":
        form, length = _windows(node)
    dtype = str(x.dtype).removeprefix("torch.")
    number = length if isinstance(length, int) else None
    return Kernel(name, family, dtype, number, form, (capability or _capability)(x.device))


def _cut(a: torch.Tensor, b: Any) -> str:
    """Which dim the groups of a grouped product cut: the inner one, rows or columns."""
    dims = b.meta["val"].dim()
    return "K" if a.dim() == dims else "M" if dims == 3 else "N"


def _windows(node: fx.Node) -> tuple[str, Any]:
    """Of a convolution: how it is computed, and how many products a result is the sum of."""
    x, w = (node.args[i].meta["val"] for i in (0, 1))  # type: ignore[union-attr]
    transposed, groups = node.args[6], node.args[8]
    taps = math.prod(w.shape[2:])
    inputs = x.shape[1] // groups
    # As in templates/convolution/gpu.py; an output of a transposed one meets some of its taps, in this order.
    if inputs == 1 and groups != 1 and isinstance(taps, int) and taps <= numerics.CONTRACTION_CHUNK:
        return "depthwise", taps
    return "transposed" if transposed else "dense", inputs * taps


def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def orders(graph: Graph) -> str:
    """One line for each op that has a kernel on a CUDA device: its node, its op and the certificate."""
    found = [(v.node, v.kernel.op, v.order) for v in graph.verdicts if v.kernel is not None]
    return "".join(f"{node}  {op}  {order}\n" for node, op, order in found)


@cache
def order(kernel: Kernel) -> str:
    """The certificate, of the first shipped configuration: those among which a call chooses share it."""
    try:
        return _order(kernel)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return "not certified: Triton is not installed"
    except Exception as error:
        # A report is no place to stop at: the compiler's own errors, which have no common class, among them.
        said = str(error).partition("\n")[0] or type(error).__name__
        return f"not certified: {said}"


def _order(kernel: Kernel) -> str:
    dtype = getattr(torch, kernel.dtype)
    if kernel.family in _BY_STEPS:
        certificates = importlib.import_module(f"bi_compile.templates.{kernel.family}.gpu_certificates")
        return str(certificates.order(kernel.op, dtype, kernel.capability))
    if kernel.family == "attention":
        from bi_compile.templates.attention import gpu_certificates as attention

        return str(attention.order(dtype, kernel.length or 64, kernel.capability))
    if dtype == torch.float64 and kernel.form != "depthwise":
        return "chains of fused multiply-adds, added in order"
    if kernel.form == "depthwise":
        from bi_compile.templates.convolution import gpu_certificates as convolution
        from bi_compile.templates.convolution.gpu_depthwise import Block

        return f"of 2 x 2 taps {convolution.order_depthwise(Block(64, 1, 2), dtype, kernel.capability)}"
    chunk = numerics.contraction_gpu_chunk(dtype.itemsize)
    of = _convolution if kernel.family == "convolution" else _product
    if kernel.length is not None:
        return of(kernel, dtype, kernel.length > chunk)
    return f"{of(kernel, dtype, False)} up to K = {chunk}, {of(kernel, dtype, True)} beyond"


def _product(kernel: Kernel, dtype: torch.dtype, chunked: bool) -> str:
    from bi_compile.templates.contraction import gpu_certificates as products
    from bi_compile.templates.contraction.gpu_configs import POINTERS, POINTERS_FP32

    # Large enough for every architecture's own family of instructions; before Hopper the last is another.
    config = (POINTERS_FP32 if dtype == torch.float32 else POINTERS)[-2].config
    if kernel.form:
        long = chunked or kernel.form == "K"
        return str(products.order_grouped(config, dtype, kernel.capability, kernel.form, long))
    return str(products.order(config, dtype, kernel.capability, "sequence" if chunked else "one"))


def _convolution(kernel: Kernel, dtype: torch.dtype, chunked: bool) -> str:
    from bi_compile.templates.convolution import gpu_certificates as convolution
    from bi_compile.templates.convolution.gpu_tiles import TILES_BEFORE_90, TILES_FP32

    tile = (TILES_FP32 if dtype == torch.float32 else TILES_BEFORE_90)[-1]
    return str(convolution.order(tile, dtype, kernel.capability, chunked))
