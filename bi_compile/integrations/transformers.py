"""transformers: canonical attention by name, models made ready for generation, sampling with seeds.

    from bi_compile.integrations.transformers import prepare

    model = prepare(AutoModelForCausalLM.from_pretrained(...).eval())
    with torch.no_grad(), bi_compile.eager():
        model.generate(**inputs, do_sample=False)

`prepare` sets the attention implementation "batch_invariant", which importing this module registers. It has
softcaps, sinks, position biases, values of another size than keys, and grouped heads without copies. With
this module imported, quantised caches are refused under `bi_compile.eager()` and in functions that the
backend compiles, also where a model was not prepared.
"""

import functools
import warnings
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, cache_utils
from transformers.masking_utils import sdpa_mask

from bi_compile.dynamo import in_effect
from bi_compile.eager_mode import eager
from bi_compile.errors import QuantizedCacheError
from bi_compile.integrations.seeded_sampling import SeededSampling, seeded
from bi_compile.passes import capture  # noqa: F401  (defines the op called below)

__all__ = ["NAME", "SeededSampling", "attention", "prepare", "seeded"]

NAME = "batch_invariant"

Tensor = torch.Tensor


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls as an attention implementation.

    query [B, Hq, Lq, D], key [B, Hkv, Lk, D], value [B, Hkv, Lk, Dv]; attention_mask broadcastable to
    [B, Hq, Lq, Lk], boolean or additive; s_aux [Hq], the sinks; position_bias, added to the scores.
    Returns [B, Lq, Hq, Dv] and no weights. Raises UnsupportedOpError for dropout.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # A single query is the last one. A mask holds causality itself.
    causal = query.shape[2] > 1 and attention_mask is None and causal
    if position_bias is not None:
        attention_mask = _biased(position_bias, attention_mask, causal, query, key)
        causal = False
    out = torch.ops.bi_compile.differentiable_attention(
        query,
        key,
        value,
        attention_mask,
        dropout,
        causal,
        scale=scaling,
        enable_gqa=True,
        softcap=softcap or 0.0,
        sinks=s_aux,
    )
    return out.transpose(1, 2), None


def _biased(bias: Tensor, mask: Tensor | None, causal: bool, query: Tensor, key: Tensor) -> Tensor:
    """Bias and mask as one additive mask."""
    if causal:
        rows = torch.arange(query.shape[2], device=key.device).unsqueeze(1)
        mask = torch.arange(key.shape[2], device=key.device) <= rows
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, torch.finfo(bias.dtype).min)
    # A sum with the lowest number could lie above it again.
    lowest = torch.finfo(mask.dtype).min
    return torch.where(mask <= lowest, lowest, bias + mask)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def prepare(model: PreTrainedModel, *, continuous_batching: bool = False) -> PreTrainedModel:
    """Make a model ready for `bi_compile.eager()` and the backend; changes and returns it.

    Its attention becomes "batch_invariant", its experts are computed in batches, as every device
    can, and a forward with a quantised cache raises QuantizedCacheError. Warns where a model's attention
    is written by hand and stays so: as canonical ops one by one it keeps rung Q, but padding on the left is
    inert only in fp32 and up to 256 keys.

    continuous_batching: for `generate_batch` and managers of transformers, which call the model in a thread
    of their own and take the attention "sdpa" or "eager" alone: the attention becomes "sdpa", and every
    forward is under `bi_compile.eager()`. A manager that would draw for the whole batch or take flash
    attention then raises ValueError.
    """
    if continuous_batching:
        model.set_attn_implementation("sdpa")
        model.forward = eager()(model.forward)
        init = functools.partial(_checked_manager, model.init_continuous_batching)
        model.init_continuous_batching = init  # type: ignore[assignment]
    elif model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
    else:
        warnings.warn(
            f"{type(model).__name__} has its own attention, which stays: padding on the left is inert only "
            "in fp32 and up to 256 keys",
            stacklevel=2,
        )
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")
    model.register_forward_pre_hook(_refuse_quantised, with_kwargs=True)
    return model


def _checked_manager(init: Any, *args: Any, **kwargs: Any) -> Any:
    """A manager whose tokens do not depend on the batch: greedy, unless `seeded` lets it draw."""
    manager = init(*args, **kwargs)
    attention = manager.model.config._attn_implementation
    if manager.generation_config.do_sample:
        raise ValueError(
            "continuous batching with do_sample=True draws for the whole batch; leave it out and draw by the "
            "seed of each request: bi_compile.integrations.transformers.seeded(manager, temperature=...)"
        )
    if attention not in ("sdpa", "paged|eager"):
        raise ValueError(
            f"continuous batching switched to {attention!r}, which depends on the batch; give "
            "continuous_batching_config=ContinuousBatchingConfig(auto_switch_to_flash=False)"
        )
    return manager


def _refuse_quantised(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    for part in (cache, *(getattr(cache, f"{kind}_attention_cache", None) for kind in ("self", "cross"))):
        for layer in getattr(part, "layers", ()):
            _refuse_quantised_layer(layer)


def _refuse_quantised_layer(layer: Any) -> None:
    if isinstance(layer, _QUANTISED):
        raise QuantizedCacheError(type(layer).__name__)


@torch.compiler.assume_constant_result
def _refuse_where_we_compute(layer: str) -> None:
    """Dynamo does not trace this but calls it, so the error is the same in functions that it compiles."""
    if in_effect():
        raise QuantizedCacheError(layer)


_QUANTISED = getattr(cache_utils, "BaseQuantizedLayer", cache_utils.QuantizedLayer)
_update = cache_utils.Cache.update


@functools.wraps(_update)
def _checked_update(
    self: Any, key_states: Tensor, value_states: Tensor, layer_idx: int, *more: Any, **also: Any
) -> Any:
    if layer_idx < len(self.layers) and isinstance(self.layers[layer_idx], _QUANTISED):
        _refuse_where_we_compute(type(self.layers[layer_idx]).__name__)
    return _update(self, key_states, value_states, layer_idx, *more, **also)


# A model that was not prepared takes its cache's keys as they come: refused here, and only where we compute.
cache_utils.Cache.update = _checked_update
