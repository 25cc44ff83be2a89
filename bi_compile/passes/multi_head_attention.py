"""nn.MultiheadAttention -> canonical attention, and beside it the weights where they are asked for.

PyTorch's own code makes the projections and the mask; the attention in it is ours. Stock PyTorch, asked for
weights (the default of the module), writes attention as product, softmax, product: there padding moves the
sums, and NaN below a mask times a weight of 0 is NaN. Here the output is that of the canonical attention
either way. A weight is exp(score - logsumexp) of its own query and key, so it keeps the rungs of the output.
"""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F

from bi_compile.passes.rebinding import rebound
from bi_compile.templates.attention import attention_with_logsumexp
from bi_compile.templates.attention.contract import LARGE, apply_mask, default_scale

Tensor = torch.Tensor

_signature = inspect.signature(F.multi_head_attention_forward)
_ours: dict[str, Any] = {
    "linear": lambda *arguments: torch.ops.bi_compile.differentiable_linear(*arguments),
    "scaled_dot_product_attention": lambda *arguments: torch.ops.bi_compile.differentiable_attention(
        *arguments
    ),
    "has_torch_function": lambda tensors: False,
}
_ours |= {
    name: rebound(getattr(F, name), _ours)
    for name in ("_in_projection", "_in_projection_packed")
    if hasattr(F, name)
}
_plain = rebound(F.multi_head_attention_forward, _ours)


def multi_head_attention_forward(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """That of torch.nn.functional.

    Returns the output [L, B, E] and the weights, [B, L, S] or, if not averaged, [B, H, L, S], or None. Rows
    all of whose keys are masked have weights of 0 and an output of 0 before the projection, where stock
    PyTorch, asked for weights, gives NaN. `bias_k` and `add_zero_attn` are no keys behind the others, where
    padding would move them, but join the softmax of the keys. Dropout in training goes by product, softmax,
    product.
    """
    call = _signature.bind(*arguments, **options)
    call.apply_defaults()
    given = call.arguments
    weights_asked = given["need_weights"]
    added = (given["bias_k"] is not None) + given["add_zero_attn"]
    if (given["training"] and given["dropout_p"] > 0) or not (weights_asked or added):
        return _plain(**given)
    if weights_asked:
        # The mask that comes with the hint of causality is taken as it is, as stock PyTorch does here.
        given |= {"need_weights": False, "is_causal": given["is_causal"] and given["attn_mask"] is None}
    weights: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, _: float, is_causal: bool) -> Tensor:
        # Under autocast the projections are narrow, and what was put behind them is not.
        mask = mask if mask is None else mask.to(q.dtype)
        out, found = _attention(q, k.to(q.dtype), v.to(q.dtype), mask, is_causal, added)
        weights.append(found)
        return out

    out, _ = rebound(_plain, {"scaled_dot_product_attention": attend})(**given)
    if not weights_asked:
        return out, None
    found = weights[0].mean(1) if given["average_attn_weights"] else weights[0]
    found = found.to(out.dtype)
    return out, found if given["query"].dim() == 3 else found.squeeze(0)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, added: int
) -> tuple[Tensor, Tensor]:
    """Output [B, H, L, D] and weights [B, H, L, S], these in fp32 or wider.

    added: how many of the S keys, the last ones, belong to every sequence; under is_causal, none in front of
    which are masked, they are keys like the others.
    """
    scale = default_scale(q)
    with torch.autocast(q.device.type, enabled=False):
        own = k.shape[2] - (0 if is_causal else added)
        own_mask = mask if mask is None else mask[..., :own]
        out, lse = attention_with_logsumexp(
            q, k[:, :, :own], v[:, :, :own], own_mask, scale, is_causal=is_causal
        )
        scores = q.to(lse.dtype) @ k.to(lse.dtype).mT * scale
        scores = apply_mask(scores, mask, is_causal)
        joined = out.to(lse.dtype)
        for place in range(own, k.shape[2]):
            score = scores[..., place]
            share = torch.sigmoid(lse - score).unsqueeze(-1)
            value = v[:, :, place : place + 1].to(lse.dtype)
            joined = joined * share + value * torch.sigmoid(score - lse).unsqueeze(-1)
            lse = torch.logaddexp(lse, score)
        # A row without any key has the logsumexp -inf; one of large numbers has rounded the keys' count away.
        weights = torch.exp(scores - torch.where(lse == -math.inf, 0.0, lse).unsqueeze(-1))
        exact = (lse.abs() < LARGE) | (lse == -math.inf)
        weights = weights / torch.where(exact.unsqueeze(-1), 1.0, weights.sum(-1, keepdim=True))
        return joined.to(out.dtype), weights
