"""The check of the final graph: no op is left whose result could depend on the batch."""

import operator
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from bi_compile import inductor
from bi_compile.analysis.arithmetic import matrices, transform
from bi_compile.analysis.flow import BatchFlow, Finding
from bi_compile.analysis.order import CREATION, DATA_MOVEMENT, base_name, is_check, is_order_free, why_open
from bi_compile.analysis.rules import rule_of
from bi_compile.errors import (
    BatchMixingError,
    UnknownBatchWarning,
    UnsupportedDeviceError,
    UnsupportedDtypeError,
    UnsupportedOpError,
)
from bi_compile.passes.dropout import draws_a_seed, is_placed
from bi_compile.report import CANONICAL, ISOLATED, LEFT_ALONE, MIXES, ORDER_FREE, UNKNOWN, Verdict
from bi_compile.templates import registry
from bi_compile.templates.dropout.contract import dropout_mask_op
from bi_compile.templates.isolation.contract import op_of as isolated_op
from bi_compile.templates.pointwise.functions import expressions
from bi_compile.user_lines import line_of

_SUPPORTED = ("torch.float32", "torch.float64", "torch.bfloat16", "torch.float16", "integers", "bool")
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

    Warns of ops through which it could not, but under "ignore".
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
        _refuse_narrow(node)
        _refuse_device(node)
        if kind == LEFT_ALONE:
            reason = _reason(node)
            _complain(_unsupported(node, reason), on_unsupported)
        elif finding is not None:
            kind, reason = UNKNOWN, finding.reason
            if on_unsupported != "ignore":
                told = UnknownBatchWarning(name, reason=reason, where=_where(node), path=_names(finding))
                warnings.warn(told, stacklevel=2)
    return Verdict(
        op=_shown_op(node, kind),
        kind=kind,
        where=line_of(node),
        node=node.name,
        inputs=tuple(n.name for n in node.all_input_nodes),
        value=flow.value(node),
        batched=flow.batched(node),
        reason=reason,
        path=() if finding is None else tuple(n.name for n in finding.path),
    )


def _shown_op(node: fx.Node, kind: str) -> str:
    if kind == ISOLATED:
        return isolated_op(str(node.args[2]))
    name = str(node.target)
    return name.removesuffix(".default") if name.startswith("bi_compile.") else name


def _unsupported(node: fx.Node, reason: str) -> UnsupportedOpError | UnsupportedDtypeError:
    unsupported = [t.dtype for t in _tensors(node) if t.dtype.is_complex]
    if unsupported and not _runs_sample_by_sample(node):
        return UnsupportedDtypeError(str(node.target), str(unsupported[0]), _SUPPORTED)
    return UnsupportedOpError(str(node.target), **_place(node), reason=reason)


def _complain(
    error: BatchMixingError | UnsupportedOpError | UnsupportedDtypeError, on_unsupported: str
) -> None:
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
        dtypes = {t.dtype for t in _tensors(node)}
        base = base_name(target)
        if target is dropout_mask_op:
            return CANONICAL if is_placed(node) else LEFT_ALONE
        if draws_a_seed(node):
            return ORDER_FREE
        if target.namespace == "bi_compile":
            return ISOLATED if base == "isolated" else CANONICAL
        if any(dtype.is_complex for dtype in dtypes):
            # Their arithmetic is left to the host's kernels; only copies of them have no order.
            copies = base in DATA_MOVEMENT or base in CREATION or base == "convert_element_type"
            return ORDER_FREE if copies else LEFT_ALONE
        if base in expressions() and target.namespace == "aten":
            return CANONICAL
        if is_order_free(target, dtypes, node.args, node.kwargs):
            return ORDER_FREE
    elif inductor.is_exact_function(target) or is_check(node):
        return ORDER_FREE
    return LEFT_ALONE


def has_no_lowering(node: fx.Node) -> bool:
    """Whether the check would refuse a call for its order of arithmetic."""
    return _touches_tensors(node) and _kind(node) == LEFT_ALONE


def _place(node: fx.Node) -> dict[str, Any]:
    return {"signature": _signature(node), "where": _where(node)}


def _where(node: fx.Node) -> str | None:
    """The user's line behind a node, or its module: one of torch's that no line of the user calls."""
    stack = node.meta.get("nn_module_stack")
    if (line := line_of(node)) or not stack:
        return line
    name, kind = list(stack.values())[-1]
    path = re.sub(r"^L\['\w+'\]\.?", "", name)
    return f"module {path}, of class {kind.__name__}" if path else f"the compiled {kind.__name__} itself"


def _names(finding: Finding) -> list[str]:
    """The path as a user reads it: inputs by name, ops by theirs."""
    return [
        base_name(n.target) if isinstance(n.target, torch._ops.OpOverload) else n.name for n in finding.path
    ]


def _reason(node: fx.Node) -> str:
    if node.target is dropout_mask_op:
        return (
            "the batch could not be followed to this dropout; keep it in a dim of its own there, and say "
            "bi_compile.mark_batch(x, None) of inputs that all samples share"
        )
    if any(word in str(node.target) for word in _RANDOM):
        return (
            "its random numbers depend on the position in the batch; if this is dropout, call model.eval() "
            'or set options={"dropout": "per_sample"}'
        )
    if _runs_sample_by_sample(node):
        return (
            "it runs sample by sample, and the batch could not be followed to it: say "
            "bi_compile.mark_batch(x, None) of inputs that all samples share; in gradients it never can: "
            "compute what needs none under torch.no_grad()"
        )
    return why_open(str(node.target))


def _runs_sample_by_sample(node: fx.Node) -> bool:
    """Whether an op is isolated wherever the batch can be followed to it."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and rule_of(target) in (transform, matrices)


def _refuse_narrow(node: fx.Node) -> None:
    for tensor in _tensors(node):
        if "float8" in str(tensor.dtype) or "float4" in str(tensor.dtype):
            raise UnsupportedDtypeError(str(node.target), str(tensor.dtype), _SUPPORTED)


def _refuse_device(node: fx.Node) -> None:
    """An op of ours without kernels for its device: not compiled, rather than found out when it runs."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "bi_compile":
        return
    name = base_name(target)
    for tensor in _tensors(node):
        family = registry.ops().get(name)
        if family is not None and not registry.has_kernels(family, tensor.device.type):
            raise UnsupportedDeviceError(tensor.device.type, name, where=_where(node))


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
