"""Rungs P and Q: logits are those of a full forward of the sequence alone, however it was cut and padded."""

import os
import random

import pytest
import torch
from transformers import DynamicCache, StaticCache

import bi_compile
from tests.architectures.check import DTYPES
from tests.bits import assert_same_bits, same_bits
from tests.generation import decoders

# Compiling takes its time: two graphs a model here, and other models in the thorough profile alone.
COMPILED = ["llama", "gemma2", "gemma3", "qwen3-moe", "deepseek-v3"]
COMPILED = COMPILED if os.environ.get("BI_COMPILE_TEST_PROFILE") == "thorough" else COMPILED[:1]
CACHES = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "static": lambda model: StaticCache(config=model.config, max_cache_len=decoders.POSITIONS),
}


def cuts(total: int, seed: int) -> list[int]:
    """A prompt in chunks, then steps of one, then both in any order."""
    draw = random.Random(seed)
    sizes = [draw.randint(2, 30)] + [1] * 5
    while sum(sizes) < total:
        sizes.append(draw.choice((1, 1, 1, 2, 5, 17, 33)))
    sizes[-1] -= sum(sizes) - total
    return sizes


def logits_alone(model, sequences) -> list[torch.Tensor]:
    return [model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0] for ids in sequences]


def differences(model, cache: str, seed: int, alone: list[torch.Tensor], sequences) -> list[str]:
    """Where the sequences, left-padded to one batch and cut at random, get other logits than alone."""
    ids, mask = decoders.left_padded(sequences)
    together = decoders.in_chunks(model, ids, mask, cuts(ids.shape[1], seed), CACHES[cache](model))
    pairs = zip(together, alone, sequences, strict=True)
    return [
        f"{len(ids)} tokens, {cache} cache"
        for found, wanted, ids in pairs
        if not same_bits(found[-len(ids) :], wanted)
    ]


@pytest.mark.parametrize("name", decoders.NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_chunks_and_steps_in_a_left_padded_batch_are_the_full_forward_alone(name, dtype):
    model = decoders.build(name, dtype)
    sequences = decoders.prompts()
    if dtype == "bf16" and (name in decoders.BY_HAND or model.config._attn_implementation == "eager"):
        # Attention by hand: products of bf16 take keys in pairs, which padding on the left would move.
        sequences = decoders.prompts((60, 60, 60))
    caches = ["dynamic"] if name in decoders.WITHOUT_STATIC_CACHE else list(CACHES)
    with bi_compile.eager():
        alone = logits_alone(model, sequences)
        found = [d for seed, c in enumerate(caches) for d in differences(model, c, seed, alone, sequences)]
    assert not found


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_stock_pytorch_fails_the_same_check(dtype):
    """The control, over the list: on some processors small sizes share one kernel."""
    sequences = decoders.prompts()
    models = [decoders.build(name, dtype) for name in decoders.NAMES]
    differ = [differences(m, "dynamic", 0, logits_alone(m, sequences), sequences) for m in models]
    assert sum(map(bool, differ)) >= len(models) // 2


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("qwen3", "bf16"), ("gemma2", "fp32"), ("olmo2", "bf16"), ("phi3", "fp32"), ("deepseek-v3", "bf16")],
)
@torch.no_grad()
def test_chunks_and_steps_of_one_prompt_alone(name, dtype):
    model, sequences = decoders.build(name, dtype), decoders.prompts((61,))
    with bi_compile.eager():
        alone = logits_alone(model, sequences)
        assert not [d for seed, c in enumerate(CACHES) for d in differences(model, c, seed, alone, sequences)]


@pytest.mark.parametrize("name", ["llama", "bloom"])
@torch.no_grad()
def test_a_full_forward_with_padding_on_the_right(name):
    model, sequences = decoders.build(name), decoders.prompts((70, 23, 4))
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True)
    with bi_compile.eager():
        together = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for found, wanted in zip(together, logits_alone(model, sequences), strict=True):
            assert_same_bits(found[: len(wanted)], wanted)


@torch.no_grad()
def test_rotary_tables_are_computed_in_fp32_under_autocast():
    embedding = decoders.build("llama").model.rotary_emb
    x, positions = torch.zeros(1), torch.arange(8000).unsqueeze(0)
    with bi_compile.eager():
        tables = embedding(x, positions)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = embedding(x.bfloat16(), positions)
    for found, table in zip(narrow, tables, strict=True):
        assert_same_bits(found, table.to(torch.bfloat16))
    angles = positions[0].unsqueeze(1).double() * embedding.inv_freq.double()
    # Angles below 8,192 are off by half of 2^-11 in fp32, and by 16 in bf16.
    torch.testing.assert_close(tables[0][0].double(), torch.cat([angles] * 2, -1).cos(), rtol=0, atol=2**-11)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@torch.no_grad()
def test_decoding_from_the_first_token_is_the_full_forward(name):
    model = decoders.build(name)
    ids = decoders.prompts()[0].unsqueeze(0)
    mask = torch.ones_like(ids)
    with bi_compile.eager():
        (alone,) = logits_alone(model, ids)
        for make in CACHES.values():
            steps = decoders.in_chunks(model, ids, mask, [1] * ids.shape[1], make(model))
            assert_same_bits(steps[0], alone)


@pytest.mark.parametrize("name", COMPILED)
@torch.no_grad()
def test_compiled_prefill_and_steps_are_the_eager_full_forward(name):
    model = decoders.build(name)
    sequences = decoders.prompts()
    with bi_compile.eager():
        alone = logits_alone(model, sequences)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="batch_invariant", dynamic=True)
    ids, mask = decoders.left_padded(sequences)
    sizes = [77] + [1] * 23
    together = decoders.in_chunks(compiled, ids, mask, sizes, CACHES["static"](model))
    for found, wanted in zip(together, alone, strict=True):
        assert_same_bits(found[-len(wanted) :], wanted)
    torch.compiler.reset()


@torch.no_grad()
def test_gpt_oss_as_it_is_keeps_its_batch_and_not_its_cuts():
    """Its sinks are one more score behind the keys, so their place in the sum moves; `prepare` cures it."""
    model = decoders.build("gpt-oss")
    sequences = decoders.prompts((60, 60, 60))
    with bi_compile.eager():
        alone = logits_alone(model, sequences)
        together = model(input_ids=torch.stack(sequences), use_cache=False).logits
        for found, wanted in zip(together, alone, strict=True):
            assert_same_bits(found, wanted)
        assert differences(model, "dynamic", 3, alone, sequences)
