"""The check of the final graph: no order-sensitive op is left without a canonical lowering."""

import operator
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from bi_compile import inductor
from bi_compile.analysis.order import is_order_free
from bi_compile.errors import UnsupportedDtypeError, UnsupportedOpError
from bi_compile.report import CANONICAL, LEFT_ALONE, ORDER_FREE, Verdict
from bi_compile.templates.pointwise.functions import expressions

_RANDOM = (
    "rand",
    "seed",
    "normal",
    "dropout",
    "bernoulli",
    "multinomial",
    "random",
    "exponential",
    "uniform",
)
_OVER_THE_BATCH = "in training mode it takes mean and variance over the whole batch; call model.eval()"
_MIXES = {
    "native_batch_norm": _OVER_THE_BATCH,
    "_native_batch_norm_legit": _OVER_THE_BATCH,
    "_native_batch_norm_legit_functional": _OVER_THE_BATCH,
    "_batch_norm_with_update": _OVER_THE_BATCH,
    "_batch_norm_with_update_functional": _OVER_THE_BATCH,
}


def verify(graph: fx.Graph, on_unsupported: str) -> list[Verdict]:
    """The verdict of every op; raises UnsupportedOpError or UnsupportedDtypeError under "error"."""
    found = ((node, _verdict(node, on_unsupported)) for node in graph.nodes)
    return [replace(verdict, node=node.name) for node, verdict in found if verdict is not None]


def _verdict(node: fx.Node, on_unsupported: str) -> Verdict | None:
    if node.op != "call_function" or node.target is operator.getitem or not _touches_tensors(node):
        return None
    where = inductor.user_line(node)
    target = node.target
    name = str(target)
    if isinstance(target, torch._ops.OpOverload):
        _refuse_dtypes(node, target)
        if target.namespace == "bi_compile":
            return Verdict(name.removesuffix(".default"), CANONICAL, where)
        base = target._schema.name.split("::")[1]
        if base in expressions() and target.namespace == "aten":
            return Verdict(name, CANONICAL, where)
        if is_order_free(target, {t.dtype for t in _tensors(node)}, node.args, node.kwargs):
            return Verdict(name, ORDER_FREE, where)
    elif inductor.is_exact_function(target):
        return Verdict(name, ORDER_FREE, where)
    if on_unsupported == "error":
        raise UnsupportedOpError(name, signature=_signature(node), where=where, reason=_reason(node))
    if on_unsupported == "warn":
        warnings.warn(
            f"bi_compile leaves {name} alone; its results may change with the batch. {where or ''}".rstrip(),
            RuntimeWarning,
            stacklevel=2,
        )
    return Verdict(name, LEFT_ALONE, where)


def _reason(node: fx.Node) -> str:
    name = str(node.target)
    base = name.split(".")[1] if "." in name else name
    if base in _MIXES:
        return f"it mixes the samples of a batch: {_MIXES[base]}"
    if any(word in name for word in _RANDOM):
        return "its random numbers depend on the position in the batch; call model.eval() if this is dropout"
    return "its result may depend on an order of evaluation that nobody has fixed"


def _refuse_dtypes(node: fx.Node, op: torch._ops.OpOverload) -> None:
    for tensor in _tensors(node):
        if tensor.dtype.is_complex or "float8" in str(tensor.dtype) or "float4" in str(tensor.dtype):
            supported = (
                "torch.float32",
                "torch.float64",
                "torch.bfloat16",
                "torch.float16",
                "integers",
                "bool",
            )
            raise UnsupportedDtypeError(str(op), str(tensor.dtype), supported)


def _values(node: fx.Node) -> Iterator[Any]:
    yield node.meta.get("val")
    for argument in node.all_input_nodes:
        yield argument.meta.get("val")


def _tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    for value in _values(node):
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, torch.Tensor):
                yield item


def _touches_tensors(node: fx.Node) -> bool:
    return any(True for _ in _tensors(node)) or isinstance(node.target, torch._ops.OpOverload)


def _signature(node: fx.Node) -> str:
    short = {"torch.float32": "f32", "torch.bfloat16": "bf16", "torch.float16": "f16", "torch.float64": "f64"}
    inputs = []
    for argument in node.all_input_nodes:
        value = argument.meta.get("val")
        if isinstance(value, torch.Tensor):
            dtype = str(value.dtype)
            inputs.append(f"{short.get(dtype, dtype.removeprefix('torch.'))}{list(value.shape)}")
    return f"inputs {', '.join(inputs) or 'none'}"
