"""transformers under `prepare`: attention by name, `generate` in all its ways, continuous batching."""

import os
import warnings
from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    QuantizedCache,
    QuantizedLayer,
)

import bi_compile
from bi_compile import report
from bi_compile.errors import QuantizedCacheError, UnsupportedOpError
from bi_compile.integrations import transformers as ours
from tests.bits import assert_same_bits, same_bits
from tests.generation import decoders
from tests.generation.test_cuts import differences, logits_alone

THOROUGH = os.environ.get("BI_COMPILE_TEST_PROFILE") == "thorough"
PROMPTS = decoders.prompts((70, 23, 4))
NEW = 12
PREPARED = tuple(n for n in (*decoders.NAMES, "gpt-oss") if n not in decoders.BY_HAND)


@pytest.fixture(scope="module")
def llama():
    return ours.prepare(decoders.build("llama"))


def generate(model, sequences, **options):
    """Per prompt: the new tokens, and the logits [new, V] they were taken from."""
    ids, mask = decoders.left_padded(sequences)
    defaults = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    defaults |= {"return_dict_in_generate": True, "output_logits": True}
    found = model.generate(ids, attention_mask=mask, **defaults | options)
    logits = torch.stack(found.logits, 1) if found.logits is not None else None
    return found, found.sequences[:, ids.shape[1] :], logits


@pytest.mark.parametrize("name", PREPARED)
@torch.no_grad()
def test_chunks_and_steps_with_our_attention(name):
    model = ours.prepare(decoders.build(name))
    assert model.config._attn_implementation == "batch_invariant"
    sequences = decoders.prompts()
    with bi_compile.eager():
        alone = logits_alone(model, sequences)
        assert not differences(model, "dynamic", 3, alone, sequences)
        assert not differences(model, "static", 4, alone, sequences)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt-oss", "deepseek-v3", "mixtral"])
@torch.no_grad()
def test_our_attention_is_that_of_the_model(name):
    model = decoders.build(name, attention="eager").double()
    ids = decoders.prompts()[0].unsqueeze(0)
    expected = model(input_ids=ids).logits
    found = ours.prepare(model)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_position_biases_of_t5():
    model = decoders.BY_NAME["t5"].build(torch.float64)
    ids, mask = decoders.left_padded(decoders.prompts((11, 7)))
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :5]}
    model.set_attn_implementation("eager")
    expected = model(**inputs).logits
    found = ours.prepare(model)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_model_with_its_own_attention_is_named():
    with pytest.warns(UserWarning, match="BloomForCausalLM has its own attention, which stays"):
        ours.prepare(decoders.build("bloom"))


CACHES = {"dynamic": {}, "static": {"cache_implementation": "static", "disable_compile": True}}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "bloom"])
@torch.no_grad()
def test_greedy_tokens_and_logits_alone_and_left_padded(name, cache):
    if cache == "static" and name in decoders.WITHOUT_STATIC_CACHE:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ours.prepare(decoders.build(name))
    with bi_compile.eager():
        _, tokens, logits = generate(model, PROMPTS, **CACHES[cache])
        for i, prompt in enumerate(PROMPTS):
            _, alone, logits_alone = generate(model, [prompt])
            assert_same_bits(logits[i], logits_alone[0], f"prompt {i}")
            assert torch.equal(tokens[i], alone[0])
        # And they are those of one forward of the finished text.
        text = torch.cat([PROMPTS[0], tokens[0]]).unsqueeze(0)
        whole = model(input_ids=text, use_cache=False).logits[0]
        assert_same_bits(whole[len(PROMPTS[0]) - 1 : -1], logits[0], "the finished text")


@torch.no_grad()
def test_the_control_stock_logits_change_with_the_batch():
    model = decoders.build("llama")
    _, _, together = generate(model, PROMPTS)
    alone = [generate(model, [prompt])[2][0] for prompt in PROMPTS]
    assert not all(map(same_bits, together, alone))


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_right_padded_prompts_of_an_encoder(name):
    model = decoders.BY_NAME[name].build(torch.float32)
    model.config.use_cache = model.generation_config.use_cache = True
    ours.prepare(model)
    prompts = decoders.prompts((30, 11, 4))
    options = {"do_sample": False, "max_new_tokens": NEW, "decoder_start_token_id": 0, "eos_token_id": None}
    options |= {"forced_bos_token_id": None, "forced_eos_token_id": None, "pad_token_id": 0}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in prompts], batch_first=True)
    with bi_compile.eager():
        together = torch.stack(model.generate(ids, attention_mask=mask, **options).logits, 1)
        for i, prompt in enumerate(prompts):
            alone = model.generate(prompt.unsqueeze(0), **options).logits
            assert_same_bits(together[i], torch.cat(alone), f"prompt {i}")


@pytest.mark.skipif(
    not THOROUGH, reason="compiling takes a minute; tests/generation/ compiles a prefill and steps"
)
@torch.no_grad()
def test_generate_with_a_compiled_forward():
    model = ours.prepare(decoders.build("llama"))
    static = CACHES["static"]
    with bi_compile.eager():
        expected = generate(model, PROMPTS, **static)[2]
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, backend="batch_invariant", dynamic=True)
    with report.collect() as found:
        assert_same_bits(generate(model, PROMPTS, **static)[2], expected)
    assert found.compilations
    torch.compiler.reset()


@torch.no_grad()
def test_beam_search(llama):
    options = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True}
    with bi_compile.eager():
        found, tokens, _ = generate(llama, PROMPTS, **options)
        for i, prompt in enumerate(PROMPTS):
            alone, tokens_alone, _ = generate(llama, [prompt], **options)
            rows = slice(2 * i, 2 * i + 2)
            assert torch.equal(tokens[rows], tokens_alone)
            assert_same_bits(found.sequences_scores[rows], alone.sequences_scores)


@torch.no_grad()
def test_sampling_with_seeds(llama):
    settings = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}

    def drawn(prompts, seeds, samples=1):
        processor = ours.SeededSampling(seeds, **settings)
        repeated = [p for p in prompts for _ in range(samples)]
        return generate(llama, repeated, logits_processor=[processor])[1]

    with bi_compile.eager():
        together = drawn(PROMPTS, [7, 8, 9], samples=4)
        greedy = generate(llama, PROMPTS)[1]
        for i, prompt in enumerate(PROMPTS):
            alone = drawn([prompt], [7 + i], samples=4)
            assert torch.equal(together[4 * i : 4 * i + 4], alone)
            assert torch.equal(drawn([prompt], [7 + i]), alone[:1]), "a sample is the first of several"
    assert len({tuple(row.tolist()) for row in together}) == 12, "streams and seeds are different"
    assert not torch.equal(together[::4], greedy)


@torch.no_grad()
def test_stock_sampling_is_refused(llama):
    with bi_compile.eager(), pytest.raises(UnsupportedOpError, match=r"aten\.multinomial"):
        generate(llama, PROMPTS, do_sample=True)


@torch.no_grad()
def test_one_sampler_serves_several_prompts(llama):
    """Longer, shorter and lengthened prompts start anew; a finished text goes on."""
    processor = ours.SeededSampling([7], temperature=0.9)

    def drawn(prompt, processor, new=NEW):
        return generate(llama, [prompt], logits_processor=[processor], max_new_tokens=new)[1][0]

    with bi_compile.eager():
        text = torch.cat([PROMPTS[1], drawn(PROMPTS[1], processor)])
        for prompt in (PROMPTS[2], PROMPTS[0], PROMPTS[0], torch.cat([PROMPTS[0], PROMPTS[2]])):
            fresh = ours.SeededSampling([7], temperature=0.9)
            assert torch.equal(drawn(prompt, processor), drawn(prompt, fresh))
        begun = torch.cat([PROMPTS[1], drawn(PROMPTS[1], processor, new=5)])
        assert torch.equal(torch.cat([begun, drawn(begun, processor, new=NEW - 5)]), text)


@torch.no_grad()
def test_guessed_tokens_that_are_taken_back_move_no_position(llama):
    def drawn(**options):
        processor = ours.SeededSampling([7], temperature=0.3)
        return generate(llama, PROMPTS[1:2], logits_processor=[processor], output_logits=False, **options)[1]

    with bi_compile.eager():
        assert torch.equal(drawn(prompt_lookup_num_tokens=3), drawn())


@pytest.mark.parametrize(
    ("error", "message", "seeds", "settings"),
    [
        (ValueError, "no seeds", [], {}),
        (TypeError, "temprature", [1], {"temprature": 0.8}),
        (ValueError, "top_p must be above 0 and at most 1, got 1.5", [1], {"top_p": 1.5}),
        (TypeError, "'float' object cannot be interpreted as an integer", [1.5], {}),
    ],
)
def test_a_sampler_refuses_its_settings_at_once(error, message, seeds, settings):
    with pytest.raises(error, match=message):
        ours.SeededSampling(seeds, **settings)


def test_seeds_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(ValueError, match="2 seeds do not divide 3 rows"):
        ours.SeededSampling([1, 2])(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 5))


class Rounding(QuantizedLayer):
    """What a user may put into a cache."""

    def _quantize(self, tensor, axis):
        return (tensor * 8).round() / 8

    def _dequantize(self, q_tensor):
        return q_tensor


QUANTISED = {
    "Rounding": lambda config: Cache(layers=[Rounding() for _ in range(config.num_hidden_layers)]),
    "Fp8QuantizedLayer": lambda config: QuantizedCache("fp8", config),
}


@pytest.mark.parametrize("layer", QUANTISED)
@torch.no_grad()
def test_quantised_caches_are_refused(layer, llama):
    ids = PROMPTS[0].unsqueeze(0)
    refused = pytest.raises(QuantizedCacheError, match=f"{layer} makes a token depend on how its prompt")
    for cache in (made := QUANTISED[layer](llama.config), EncoderDecoderCache(made, DynamicCache())):
        with refused:
            llama(input_ids=ids, past_key_values=cache)
    unprepared = decoders.build("llama")
    with refused, bi_compile.eager():
        unprepared(input_ids=ids, past_key_values=QUANTISED[layer](llama.config))
    keys = torch.randn(1, 2, 5, 16)

    def write(cache):
        return cache.update(keys, keys, 0)

    for fullgraph in (False, True):
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.InternalTorchDynamoError, match=f"{layer} makes a token depend"):
            torch.compile(write, backend="batch_invariant", fullgraph=fullgraph)(
                QUANTISED[layer](llama.config)
            )
    torch.compiler.reset()
    torch.compile(write, backend="eager")(made := QUANTISED[layer](llama.config))
    assert made.get_seq_length() == 5, "and compiled by others"
    stock = unprepared(input_ids=ids, past_key_values=QUANTISED[layer](llama.config))
    assert stock.past_key_values.get_seq_length() == len(PROMPTS[0]), "stock PyTorch goes on as before"


def test_dropout_is_refused():
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(UnsupportedOpError, match="dropout"):
        ours.attention(SimpleNamespace(is_causal=True), q, q, q, None, dropout=0.1)  # type: ignore[arg-type]


compiles_for_minutes = pytest.mark.skipif(
    not THOROUGH, reason="transformers compiles block masks, and a whole model is five graphs: minutes"
)


def flex_llama():
    """A model whose attention is flex_attention, with padding on the left of two of five prompts."""
    model = decoders.build("llama", attention="flex_attention")
    ids, mask = decoders.left_padded(decoders.prompts((12, 8, 12, 11, 12)))
    return model, ids, mask


@compiles_for_minutes
@torch.no_grad()
def test_flex_attention_with_padding_has_the_bits_of_our_attention():
    model, ids, mask = flex_llama()
    with bi_compile.eager():
        flex = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        ours.prepare(model)
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    assert_same_bits(flex[mask.bool()], expected[mask.bool()])


@compiles_for_minutes
@torch.no_grad()
def test_compiled_flex_attention_with_padding_is_that_of_each_prompt_alone():
    """Its block mask is made behind a graph break, which hands on the number of samples as a number."""
    torch.compiler.reset()
    model, ids, mask = flex_llama()
    compiled = torch.compile(model, backend="batch_invariant")
    together = compiled(input_ids=ids, attention_mask=mask, use_cache=False).logits
    for i in range(len(ids)):
        one = slice(i, i + 1)
        alone = compiled(input_ids=ids[one], attention_mask=mask[one], use_cache=False).logits
        assert_same_bits(alone[mask[one].bool()], together[one][mask[one].bool()])
    torch.compiler.reset()
