"""The fused attention ops that PyTorch chooses from by layout, size and device -> the canonical attention.

`scaled_dot_product_attention` itself is caught before it chooses (`capture`). These arrive where it could not
be: outside graphs, and in graphs that somebody traced. The log-sum-exp is there; what gradients and debugging
read besides is empty.
"""

from typing import Any

import torch

from bi_compile.passes.rewrite import rewrite
from bi_compile.templates.attention import attention_with_logsumexp
from bi_compile.templates.attention.contract import check_inputs, default_scale

aten = torch.ops.aten
Tensor = torch.Tensor


def _both(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: Any) -> Any:
    """[B, Hq, Lq, Dv] and [B, Hq, Lq]. Heads of keys that are fewer than those of queries are grouped."""
    check_inputs(query, key, value, mask, causal)
    scale = default_scale(query) if scale is None else scale
    return attention_with_logsumexp(query, key, value, mask, scale, is_causal=causal)


@rewrite(aten._scaled_dot_product_flash_attention_for_cpu.default)
def _for_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Any:
    return NotImplemented if dropout_p else _both(query, key, value, attn_mask, is_causal, scale)


def _nine(both: tuple[Tensor, Tensor], query: Tensor, key: Tensor) -> tuple[Any, ...]:
    """What the flash and cuDNN ops return: lengths, and states of random numbers that were not drawn."""
    none = query.new_empty(0)
    return *both, none, none, query.shape[-2], key.shape[-2], none, none, none


@rewrite(aten._scaled_dot_product_flash_attention.default)
def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> Any:
    if dropout_p or return_debug_mask:
        return NotImplemented
    return _nine(_both(query, key, value, None, is_causal, scale), query, key)


@rewrite(aten._scaled_dot_product_cudnn_attention.default)
def _cudnn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> Any:
    if dropout_p or return_debug_mask:
        return NotImplemented
    return _nine(_both(query, key, value, attn_bias, is_causal, scale), query, key)


@rewrite(aten._scaled_dot_product_efficient_attention.default)
def _efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Tensor | None,
    compute_log_sumexp: bool,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
) -> Any:
    if dropout_p:
        return NotImplemented
    none = query.new_empty(0)
    return *_both(query, key, value, attn_bias, is_causal, scale), none, none


REWRITES = (*_for_cpu, *_flash, *_cudnn, *_efficient)
