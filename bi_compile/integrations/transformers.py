"""transformers: canonical attention by name, models made ready for generation, sampling with seeds.

    from bi_compile.integrations.transformers import prepare

    model = prepare(AutoModelForCausalLM.from_pretrained(...).eval())
    with torch.no_grad(), bi_compile.eager():
        model.generate(**inputs, do_sample=False)

`prepare` sets the attention implementation "batch_invariant", which importing this module registers. It has
softcaps, sinks, position biases, values of another size than keys, and grouped heads without copies.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, LogitsProcessor, PreTrainedModel
from transformers.cache_utils import QuantizedCache
from transformers.masking_utils import sdpa_mask

from bi_compile.errors import QuantizedCacheError
from bi_compile.passes import capture  # noqa: F401  (defines the op called below)
from bi_compile.sampling import sample

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


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model ready for `bi_compile.eager()` and the backend; changes and returns it.

    Its attention becomes "batch_invariant", its experts are computed in batches, as every device
    can, and a forward with a quantised cache raises QuantizedCacheError. Warns where a model's attention
    is written by hand and stays so: as canonical ops one by one it keeps rung Q, but padding on the left is
    inert only in fp32 and up to 256 keys.
    """
    if model._can_set_attn_implementation():
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


def _refuse_quantised(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    cache = kwargs.get("past_key_values")
    if isinstance(cache, QuantizedCache):
        raise QuantizedCacheError(type(cache).__name__)


class SeededSampling(LogitsProcessor):
    """A logits processor for `generate(do_sample=False)` that draws as `bi_compile.sampling.sample` does.

    Put it last: it leaves the drawn token alone possible, which greedy search then takes. Settings that
    `generate` itself would apply (temperature, top_k, top_p) are given here.
    seeds: one for each prompt. For n samples repeat each prompt n times, next to one another: they are the
    streams 0 ... n-1 of its seed. (`num_return_sequences` asks for `do_sample=True`, whose draw is refused.)
    One object serves one call of `generate`.
    """

    def __init__(self, seeds: Sequence[int], **settings: Any) -> None:
        self._seeds = torch.tensor(list(seeds), dtype=torch.int64)
        self._settings = settings
        self._prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [B, so far], scores [B, V]; B a multiple of the seeds. Returns [B, V]."""
        rows, requests = len(scores), len(self._seeds)
        if rows % requests:
            raise ValueError(f"SeededSampling: {requests} seeds do not divide {rows} rows of logits")
        if self._prompt is None:
            # Padding on the left counts as prompt: only what comes after is counted.
            self._prompt = input_ids.shape[1]
        each = rows // requests
        tokens = sample(
            scores,
            self._seeds.repeat_interleave(each),
            input_ids.shape[1] - self._prompt,
            streams=torch.arange(rows) % each,
            **self._settings,
        )
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(1), 0.0)
