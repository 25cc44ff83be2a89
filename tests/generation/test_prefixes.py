"""A prompt whose beginning lies in a cache has the bits of one computed from nothing."""

import copy

import pytest
import torch
from transformers import DynamicCache

import bi_compile
from tests.bits import same_bits
from tests.generation import decoders
from tests.generation.test_cuts import logits_alone

SHARED, OWN, STEPS = 45, 30, 6
"""Tokens of the beginning, more than a window; of each prompt's own rest; of those decoded one by one."""
FAMILIES = (
    "llama", "qwen3", "gpt2", "gemma2", "gemma3", "phi3", "falcon", "bloom", "olmo2", "gpt-neox", "mixtral",
    "deepseek-v3",
)  # fmt: skip


def parts() -> list[torch.Tensor]:
    """A beginning, and what follows it in each of four prompts."""
    return decoders.prompts((SHARED, OWN, OWN, OWN, OWN))


def hits_unlike_cold_runs(model, beginning: torch.Tensor, *rests: torch.Tensor) -> list[int]:
    """Which prompts get other logits from a cache of the first than alone."""
    prompts = [torch.cat([beginning, rest]) for rest in rests]
    cold = logits_alone(model, prompts)
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()  # else a sliding window has forgotten what it would go back to
    model(input_ids=prompts[0].unsqueeze(0), past_key_values=cache, use_cache=True)
    cache.crop(-OWN)
    alone, together = copy.deepcopy(cache), copy.deepcopy(cache)
    together.batch_repeat_interleave(len(rests) - 1)
    hits = [_from(model, alone, torch.stack(rests[:1])), _from(model, together, torch.stack(rests[1:]))]
    return [i for i, found in enumerate(torch.cat(hits)) if not same_bits(found, cold[i][SHARED:])]


def _from(model, cache, ids: torch.Tensor) -> torch.Tensor:
    """Logits of ids [B, length] after what the cache holds: most at once, then one by one."""
    chunks = ids.split([ids.shape[1] - STEPS, *[1] * STEPS], dim=1)
    return torch.cat([model(input_ids=c, past_key_values=cache, use_cache=True).logits for c in chunks], 1)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_cache_cut_back_and_copied_serves_other_prompts(name):
    model, prompts = decoders.build(name), parts()
    with bi_compile.eager():
        assert not hits_unlike_cold_runs(model, *prompts)


@torch.no_grad()
def test_stock_hits_are_unlike_cold_runs():
    """The control, over the families."""
    unlike = [hits_unlike_cold_runs(decoders.build(name), *parts()) for name in FAMILIES]
    assert sum(map(bool, unlike)) >= len(FAMILIES) // 2


def test_copies_of_tensors_under_eager_mode():
    x = torch.randn(3, 5).transpose(0, 1)
    with bi_compile.eager():
        copied = copy.deepcopy(x)
        copied += 1
    assert copied.stride() == x.stride()
    assert same_bits(copied, x + 1)
