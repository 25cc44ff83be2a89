"""The check of the final graph: no op is left whose result could depend on the batch."""

import operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from bi_compile import inductor
from bi_compile.analysis.flow import BatchFlow, Finding
from bi_compile.analysis.order import is_order_free
from bi_compile.errors import BatchMixingError, UnsupportedDtypeError, UnsupportedOpError
from bi_compile.report import CANONICAL, LEFT_ALONE, MIXES, ORDER_FREE, UNKNOWN, Verdict
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


def verify(graph: fx.Graph, on_unsupported: str, flow: BatchFlow) -> list[Verdict]:
    """The verdict of every op of a final graph, through which `flow` has followed the batch.

    Raises BatchMixingError, UnsupportedOpError or UnsupportedDtypeError under "error".
    """
    return [v for node in graph.nodes if (v := _verdict(node, on_unsupported, flow)) is not None]


def _verdict(node: fx.Node, on_unsupported: str, flow: BatchFlow) -> Verdict | None:
    if node.op != "call_function" or node.target is operator.getitem or not _touches_tensors(node):
        return None
    name = str(node.target).removesuffix(".default")
    finding = flow.findings.get(node)
    if finding is not None and finding.mixes:
        kind, reason = MIXES, finding.reason
        _complain(BatchMixingError(name, **_place(node), reason=reason, path=_names(finding)), on_unsupported)
    else:
        kind, reason = _kind(node), None
        if kind == LEFT_ALONE:
            reason = _reason(node)
            _complain(UnsupportedOpError(str(node.target), **_place(node), reason=reason), on_unsupported)
        elif finding is not None:
            kind, reason = UNKNOWN, finding.reason
    return Verdict(
        op=name if name.startswith("bi_compile.") else str(node.target),
        kind=kind,
        where=inductor.user_line(node),
        node=node.name,
        inputs=tuple(n.name for n in node.all_input_nodes),
        value=flow.value(node),
        batched=flow.batched(node),
        reason=reason,
        path=() if finding is None else tuple(n.name for n in finding.path),
    )


def _complain(error: BatchMixingError | UnsupportedOpError, on_unsupported: str) -> None:
    if on_unsupported == "error":
        raise error
    if on_unsupported == "warn":
        warnings.warn(
            f"bi_compile leaves {error.op} alone; its results may change with the batch. "
            f"{error.where or ''}".rstrip(),
            RuntimeWarning,
            stacklevel=2,
        )


def _kind(node: fx.Node) -> str:
    """How the op's order of arithmetic is fixed."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        _refuse_dtypes(node, target)
        base = target._schema.name.split("::")[1]
        if target.namespace == "bi_compile" or (base in expressions() and target.namespace == "aten"):
            return CANONICAL
        if is_order_free(target, {t.dtype for t in _tensors(node)}, node.args, node.kwargs):
            return ORDER_FREE
    elif inductor.is_exact_function(target):
        return ORDER_FREE
    return LEFT_ALONE


def _place(node: fx.Node) -> dict[str, Any]:
    return {"signature": _signature(node), "where": inductor.user_line(node)}


def _names(finding: Finding) -> list[str]:
    """The path as a user reads it: inputs by name, ops by theirs."""
    return [n.name if n.op == "placeholder" else str(n.target).split(".")[1] for n in finding.path]


def _reason(node: fx.Node) -> str:
    if any(word in str(node.target) for word in _RANDOM):
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
