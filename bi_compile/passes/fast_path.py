"""What PyTorch calls for inference instead of its own encoder layers: their definition, with our ops inside.

`nn.TransformerEncoderLayer` and `nn.MultiheadAttention` in eval mode hand all their weights to one op each,
where no gradient is wanted and heads are even. Their other path, taken in every other case, is followed here.
"""

from typing import Any

import torch
import torch.nn.functional as F

from bi_compile.passes.composite import COMPOSITES
from bi_compile.passes.rewrite import rewrite

aten = torch.ops.aten
Tensor = torch.Tensor


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    projections: tuple[Tensor, ...],
    mask: Tensor | None,
    mask_type: int | None,
    **options: bool,
) -> tuple[Tensor, Tensor | None]:
    """query [B, L, E]; mask_type: 0 for a mask [L, L], 1 for one of keys [B, L], 2 for [B, H, L, L]."""
    qkv_weight, qkv_bias, weight, bias = projections
    padding = mask if mask_type == 1 else None
    pairs = mask if mask_type == 0 else mask.flatten(0, 1) if mask is not None and mask_type == 2 else None
    out, weights = COMPOSITES[F.multi_head_attention_forward](
        *(x.transpose(0, 1) for x in (query, key, value)), embed_dim, num_heads, qkv_weight, qkv_bias,
        None, None, False, 0.0, weight, bias,
        training=False, key_padding_mask=padding, attn_mask=pairs, **options,
    )  # fmt: skip
    return out.transpose(0, 1), weights


@rewrite(aten._native_multi_head_attention.default)
def _multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_head: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> Any:
    projections = (qkv_weight, qkv_bias, proj_weight, proj_bias)
    out, weights = _attend(
        query, key, value, embed_dim, num_head, projections, mask, mask_type,
        need_weights=need_weights, average_attn_weights=average_attn_weights,
    )  # fmt: skip
    return out, query.new_empty(0) if weights is None else weights


@rewrite(aten._transformer_encoder_layer_fwd.default)
def _encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,
) -> Any:
    linear = torch.ops.bi_compile.differentiable_linear
    projections = (qkv_weight, qkv_bias, proj_weight, proj_bias)

    def attended(x: Tensor) -> Tensor:
        return _attend(x, x, x, embed_dim, num_heads, projections, mask, mask_type, need_weights=False)[0]

    def fed(x: Tensor) -> Tensor:
        inner = linear(x, ffn_weight_1, ffn_bias_1)
        return linear(F.gelu(inner) if use_gelu else F.relu(inner), ffn_weight_2, ffn_bias_2)

    def norm_1(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def norm_2(x: Tensor) -> Tensor:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        x = src + attended(norm_1(src))
        return x + fed(norm_2(x))
    x = norm_1(src + attended(src))
    return norm_2(x + fed(x))


_encoder_op: Any = aten._transformer_encoder_layer_fwd.default
if not _encoder_op.has_kernel_for_dispatch_key("Meta"):
    # As in torch 2.11: Dynamo cannot tell what the op returns, and leaves the graph at every encoder layer.
    _library = torch.library.Library("aten", "IMPL")
    _library.impl(_encoder_op, lambda src, *arguments: torch.empty_like(src), "Meta")


@rewrite(aten._nested_tensor_from_mask_left_aligned.default)
def _left_aligned(x: Tensor, mask: Tensor) -> Any:
    # Asked by `nn.TransformerEncoder`, which otherwise makes a nested tensor of padded samples.
    return False


REWRITES = (*_multi_head_attention, *_encoder_layer, *_left_aligned)
