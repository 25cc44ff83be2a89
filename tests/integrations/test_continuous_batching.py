"""transformers' continuous batching: pages of a shared pool, requests that come and go, shared beginnings."""

import random
import time

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators.cache_pool import CachePool

from bi_compile.integrations.transformers import SeededSampling, prepare, seeded
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
    prepare(model, continuous_batching=True)
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


def arriving(manager, sequences, order, **arguments):
    """Tokens of each prompt, added in any order at any time while others are under way."""
    draw, added, found = random.Random(order), {}, {}
    manager.start()
    try:
        for i in draw.sample(range(len(sequences)), len(sequences)):
            added[manager.add_request(sequences[i].tolist(), **{k: v[i] for k, v in arguments.items()})] = i
            time.sleep(draw.choice((0, 0, 0.02, 0.1)))
        while len(found) < len(sequences):
            output = manager.get_result(timeout=60)
            assert output is not None, "no result in a minute"
            if output.is_finished():
                found[added[output.request_id]] = output.generated_tokens
    finally:
        manager.stop(block=True)
    return [found[i] for i in range(len(sequences))]


def manager_of(model, **options):
    greedy = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.init_continuous_batching(
        generation_config=GenerationConfig(**greedy | options),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=64, page_size=8, max_batch_tokens=40, allow_block_sharing=False
        ),
    )


@torch.no_grad()
def test_requests_at_random_times_draw_by_their_own_seeds():
    model = prepare(decoders.build("llama"), continuous_batching=True)
    sequences = prompts()
    greedy = [generate(model, [p], max_new_tokens=NEW)[1][0].tolist() for p in sequences]
    assert arriving(manager_of(model), sequences, 1) == greedy
    seeds, settings = [2**40 + i for i in range(len(sequences))], {"temperature": 0.9, "top_p": 0.95}
    expected = []
    for prompt, seed in zip(sequences, seeds, strict=True):
        processor = SeededSampling([seed], **settings)
        expected.append(
            generate(model, [prompt], max_new_tokens=NEW, logits_processor=[processor])[1][0].tolist()
        )
    for order in (2, 3):
        assert arriving(seeded(manager_of(model), **settings), sequences, order, seed=seeds) == expected
    assert expected != greedy


@torch.no_grad()
def test_a_manager_that_would_not_draw_by_seeds_is_refused():
    model = decoders.build("llama", attention="sdpa")
    with pytest.raises(ValueError, match="do_sample=True would draw by stock sampling"):
        seeded(manager_of(model, do_sample=True))
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        seeded(manager_of(model), temperature=-1.0)
    with pytest.raises(ValueError, match=r"add_request\(prompt, seed=...\)"):
        seeded(manager_of(model)).add_request([5, 6])


@torch.no_grad()
def test_what_would_depend_on_the_batch_is_refused(monkeypatch):
    model = prepare(decoders.build("llama"), continuous_batching=True)
    greedy = GenerationConfig(max_new_tokens=2, do_sample=True, eos_token_id=None, pad_token_id=0)
    with pytest.raises(ValueError, match="draws for the whole batch"):
        manager_of(model, do_sample=True)
    with pytest.raises(ValueError, match="draws for the whole batch"):
        model.generate_batch([[5, 6, 7]], generation_config=greedy)
    monkeypatch.setattr(model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(ValueError, match=r"switched to 'flash_attention_2'.*auto_switch_to_flash=False"):
        manager_of(model)


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
