"""Whole ops caught before PyTorch decomposes them: linear, attention, cdist, recurrent layers.

PyTorch picks their decomposition by contiguity, size, mask and gradient mode, and the pieces round in
different places. Caught whole, each has one definition. The ops below carry autograd and trace through to the
raw templates; both the compiled graph (`capture`) and eager mode (`CAPTURED`) put them in.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from bi_compile.dynamo_tracing import is_tracing
from bi_compile.passes import dropout, flex_attention, nested, recurrent, varlen_attention
from bi_compile.passes.associations import ASSOCIATIONS
from bi_compile.passes.composite import COMPOSITES
from bi_compile.templates import attention, contraction

_library = torch.library.Library("bi_compile", "FRAGMENT")
_library.define("differentiable_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor")
_library.define(
    "differentiable_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, "
    "float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False, "
    "float softcap=0.0, Tensor? sinks=None) -> Tensor"
)
_library.define("differentiable_grouped_mm(Tensor a, Tensor b, Tensor? offs=None) -> Tensor")
_library.define(
    "differentiable_cdist(Tensor x1, Tensor x2, float p=2.0, "
    "str? compute_mode='use_mm_for_euclid_dist_if_necessary') -> Tensor"
)


def _autocast(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """The tensors as autocast hands them to the stock op."""
    device = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    eligible = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(t.to(dtype) if t is not None and t.dtype in eligible else t for t in tensors)


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    run: Any = nested.linear if nested.is_nested(input, weight, bias) else contraction.linear
    return run(*_autocast(input, weight, bias))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    *rest: Any,
    **options: Any,
) -> torch.Tensor:
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    if nested.is_nested(query, key, value):
        return nested.attention(query, key, value, attn_mask, dropout_p, *rest, **options)
    if dropout_p > 0 and is_tracing():
        # Left to the dropout in it, which the option makes one per sample, or the final check refuses.
        return dropout.attention(query, key, value, attn_mask, dropout_p, *rest, **options)
    return attention.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, *rest, **options)


def _cdist(
    x1: torch.Tensor,
    x2: torch.Tensor,
    p: float = 2.0,
    compute_mode: str | int | None = "use_mm_for_euclid_dist_if_necessary",
) -> torch.Tensor:
    # By differences in every mode: "if necessary" would look at the number of rows, and outside graphs a call
    # that asks for products is not told from one of many rows.
    if compute_mode not in _MODES:
        raise ValueError(f"{compute_mode} is not a valid value for compute_mode")
    return torch.ops.aten._cdist_forward.default(x1, x2, p, 2)


_MODES = (
    "use_mm_for_euclid_dist_if_necessary",
    "use_mm_for_euclid_dist",
    "donot_use_mm_for_euclid_dist",
    *(None, 0, 1, 2),  # of the ATen op
)


def _grouped_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    *,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    if bias is not None:
        return torch._grouped_mm(mat_a, mat_b, offs=offs, bias=bias, out_dtype=out_dtype)
    return torch.ops.bi_compile.differentiable_grouped_mm(mat_a, mat_b, offs).to(out_dtype or mat_a.dtype)


_library.impl("differentiable_grouped_mm", contraction.grouped_mm, "CompositeImplicitAutograd")
_library.impl("differentiable_linear", _linear, "CompositeImplicitAutograd")
_library.impl("differentiable_cdist", _cdist, "CompositeImplicitAutograd")
_library.impl("differentiable_attention", _attention, "CompositeImplicitAutograd")

_linear_op = torch.ops.bi_compile.differentiable_linear.default
_attention_op = torch.ops.bi_compile.differentiable_attention.default

CAPTURED = {
    torch.cdist: torch.ops.bi_compile.differentiable_cdist.default,
    torch.ops.aten.cdist.default: _cdist,
    torch.nn.functional.linear: _linear_op,
    torch.nn.functional.scaled_dot_product_attention: _attention_op,
    torch.ops.aten.linear.default: _linear_op,
    torch.ops.aten.scaled_dot_product_attention.default: _attention_op,
    torch._grouped_mm: _grouped_mm,
    **({F.grouped_mm: _grouped_mm} if hasattr(F, "grouped_mm") else {}),
    **flex_attention.CAPTURED,
    **recurrent.CAPTURED,
    **ASSOCIATIONS,
    **COMPOSITES,
}
"""Stock function -> our op or function of the same signature."""

BY_NAME = {
    "transformers::grouped_mm_fallback": torch.ops.bi_compile.differentiable_grouped_mm.default,
    **varlen_attention.BY_NAME,
}
"""The same for ops of other packages, which may not be loaded: custom ops that call stock kernels."""


def captured(target: Any) -> Any:
    """What stands in for a function or op, or None."""
    if isinstance(target, torch._ops.OpOverload):
        return CAPTURED.get(target) or BY_NAME.get(target._schema.name)
    if isinstance(target, torch._ops.OpOverloadPacket):
        (name, *others) = target.overloads()
        only = getattr(target, name) if not others else None
        return CAPTURED.get(only) or BY_NAME.get(target._qualified_op_name)
    return CAPTURED.get(target)


def capture(module: fx.GraphModule) -> None:
    """Replace captured functions in a graph from Dynamo, nested graphs included, in place."""
    for graph_module in module.modules():
        if not isinstance(graph_module, fx.GraphModule):
            continue
        changed = False
        for node in graph_module.graph.nodes:
            if node.op == "call_function" and (ours := captured(node.target)) is not None:
                node.target = ours
                changed = True
        if changed:
            graph_module.recompile()
