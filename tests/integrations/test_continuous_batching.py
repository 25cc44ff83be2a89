"""transformers' continuous batching: pages of a shared pool, requests that come and go, shared beginnings."""

import random

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators.cache_pool import CachePool

import bi_compile
from tests.generation import decoders
from tests.integrations.test_transformers import generate

NEW = 6
SHARED = 37
"""Tokens of the beginning that three prompts share."""
WAYS = ((8, 40, True), (32, 150, False))
"""Tokens of a page and of a batch, and whether pages are shared."""


def prompts() -> list[torch.Tensor]:
    """Three of one beginning, more than two pages, and three others."""
    beginning, *rests = decoders.prompts((SHARED, 33, 9, 1, 70, 23, 4))
    return [torch.cat([beginning, rest]) for rest in rests[:3]] + rests[3:]


def continuous(model, sequences, page_size, max_batch_tokens, shared):
    """Tokens of each prompt by continuous batching, which runs in a thread of its own."""
    found = model.generate_batch(
        inputs=[p.tolist() for p in sequences],
        generation_config=GenerationConfig(
            max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=64,
            page_size=page_size,
            max_batch_tokens=max_batch_tokens,
            allow_block_sharing=shared,
        ),
    )
    by_prompt = {tuple(o.prompt_ids): o.generated_tokens for o in found.values()}
    return [by_prompt[tuple(p.tolist())] for p in sequences]


def recorded(model) -> list[bytes]:
    """From now on the rows of logits that the model computes."""
    forward, rows = model.forward, []

    def run(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        rows.extend(row.numpy().tobytes() for row in outputs.logits.flatten(0, -2))
        return outputs

    model.forward = run
    return rows


def drawn_from(model, prompt: torch.Tensor, tokens: list[int]) -> set[bytes]:
    """The rows of logits that the tokens were drawn from, by one forward of the finished text."""
    text = torch.cat([prompt, torch.tensor(tokens)]).unsqueeze(0)
    logits = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return {row.numpy().tobytes() for row in logits}


@pytest.fixture
def hits(monkeypatch):
    """Tokens that prompts found in pages of others; the pages are handed out in any order."""
    found: list[int] = []
    search, take = PagedAttentionCache.search_prefix_match, CachePool.get_free_blocks
    draw = random.Random(0)

    def searched(self, *args):
        found.append(search(self, *args))
        return found[-1]

    def taken(self, *args):
        return draw.sample(blocks := take(self, *args), len(blocks))

    monkeypatch.setattr(PagedAttentionCache, "search_prefix_match", searched)
    monkeypatch.setattr(CachePool, "get_free_blocks", taken)
    return found


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
@torch.no_grad()
def test_tokens_and_logits_are_those_of_each_prompt_alone(name, hits):
    model = decoders.build(name, attention="sdpa")
    rows = recorded(model)
    model.forward = bi_compile.eager()(model.forward)
    sequences = prompts()
    expected = [generate(model, [p], max_new_tokens=NEW)[1][0].tolist() for p in sequences]
    wanted = set.union(*(drawn_from(model, *pair) for pair in zip(sequences, expected, strict=True)))
    for page_size, max_batch_tokens, shared in WAYS:
        rows.clear()
        hits.clear()
        order = torch.randperm(len(sequences)).tolist()
        found = continuous(model, [sequences[i] for i in order], page_size, max_batch_tokens, shared)
        assert found == [expected[i] for i in order]
        assert wanted <= set(rows)
        # A sliding window shares no pages.
        assert max(hits, default=0) == (SHARED // page_size * page_size if shared and name != "gemma3" else 0)


@torch.no_grad()
def test_stock_logits_are_others():
    """The control."""
    model = decoders.build("llama", attention="sdpa")
    rows = recorded(model)
    sequences = prompts()
    found = continuous(model, sequences, *WAYS[0])
    seen = set(rows)
    wanted = set.union(*(drawn_from(model, *pair) for pair in zip(sequences, found, strict=True)))
    assert not wanted <= seen
