"""Dropout whose noise is a function of a seed and the sample's own bits: option dropout="per_sample".

Tracing sees dropout before the batch is followed through the graph, so `native_dropout` becomes a mask that
does not know where the batch is, and the final graph tells it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from bi_compile.analysis.flow import BatchFlow
from bi_compile.passes.isolation import batch_of, only_guessed
from bi_compile.passes.rewrite import is_floating, rewrite
from bi_compile.templates.attention.contract import apply_mask, check_inputs, default_scale
from bi_compile.templates.dropout.contract import dropout_mask, dropout_mask_op

aten = torch.ops.aten


@rewrite(aten.native_dropout.default)
def _native_dropout(x: torch.Tensor, p: float, train: bool | None) -> Any:
    if not is_floating(x):
        return NotImplemented
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = dropout_mask(x, torch.randint(0, 2**63 - 1, (1,), device=x.device), p)
    return kept * x * (0.0 if p == 1 else 1 / (1 - p)), kept


REWRITES = (*_native_dropout,)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The template's `scaled_dot_product_attention` with dropout of the weights, by products and a softmax.

    Arguments, result and errors as there; in fp32 or wider. All weights are in memory: the template has none
    that could be dropped.
    """
    check_inputs(query, key, value, attn_mask, is_causal)
    scale = default_scale(query) if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (t.to(wide) for t in (query, key, value))
        if enable_gqa and min(q.dim(), k.dim(), v.dim()) >= 3:
            k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
        scores = q @ k.mT * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        scores = apply_mask(scores, attn_mask, is_causal)
        # A row without any key is zero, as in the template.
        hidden = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.where(hidden, 0.0, torch.softmax(scores, -1))
        if sinks is not None:
            share = torch.sigmoid(torch.logsumexp(scores, -1) - sinks.to(wide).unsqueeze(-1))
            weights = weights * share.unsqueeze(-1)
        return (F.dropout(weights, dropout_p) @ v).to(query.dtype)


def place_batch(graph: fx.Graph, flow: BatchFlow, guesses: Sequence[bool]) -> bool:
    """Tell each mask of a final graph, in place, where the batch lies; returns whether there was any.

    One stays, for the check of the graph to refuse, where the batch could not be followed to it or lies in no
    dim of its own (or as B*S with S known). guesses: as for `isolate`.
    """
    masks = _masks(graph)
    guessed = only_guessed(graph, guesses) if masks else set()
    changed = False
    for node in masks:
        x: Any = node.args[0]
        if flow.flows.get(x) is None or (not flow.flows[x].axes and x in guessed):
            continue
        dims, rows = batch_of([x], flow)
        if dims is not None:
            whole = dims == [-1]
            node.args = (*node.args[:3], 0 if whole else dims[0], 0 if whole else rows[0])
            changed = True
    return changed


def run_unplaced(graph: fx.Graph) -> None:
    """Let masks that the check has let through unplaced take the whole batch for one sample."""
    for node in _masks(graph):
        if not is_placed(node):
            node.args = (*node.args[:3], 0, 0)


def _masks(graph: fx.Graph) -> list[fx.Node]:
    return list(graph.find_nodes(op="call_function", target=dropout_mask_op))


def is_placed(node: fx.Node) -> bool:
    """Whether a node is a mask that knows where the batch is."""
    return node.target is dropout_mask_op and len(node.args) == 5


def draws_a_seed(node: fx.Node) -> bool:
    """Whether a node draws random numbers for placed masks alone: one number each, whatever the batch."""
    random = "rand" in str(node.target) or "seed" in str(node.target)
    return random and bool(node.users) and all(_is_seed(node, user) for user in node.users)


def _is_seed(node: fx.Node, user: fx.Node) -> bool:
    return (is_placed(user) and user.args[0] is not node) or draws_a_seed(user)
