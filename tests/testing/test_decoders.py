"""Random decoders: ours keep their logits however they are cut and padded, stock PyTorch's do not."""

import os
import random

import pytest
import torch
from hypothesis import Phase, find, given, settings

import bi_compile
from bi_compile.testing.decoder_scripts import decoder_script_of
from bi_compile.testing.decoders import FAMILIES, Decoder, check_decoder
from bi_compile.testing.messages import BatchVarianceError
from bi_compile.testing.shrinking import smallest
from bi_compile.testing.strategies import decoders
from tests.bits import assert_same_bits

COUNT = 6 if os.environ.get("BI_COMPILE_TEST_PROFILE", "fast") == "fast" else 200
SEARCH = settings(max_examples=200, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink])


@pytest.mark.parametrize("number", range(COUNT))
def test_random_decoders_keep_their_logits(number):
    check_decoder(Decoder.drawn(random.Random(f"fast {number}")), bi_compile.eager())


def test_stock_pytorch_fails_the_same_check():
    case = Decoder(heads=2, kv_heads=1, head_size=32, inner=118, lengths=(40, 17, 9), cuts=(17, 1, 5))
    check_decoder(case, bi_compile.eager())
    with pytest.raises(BatchVarianceError, match="the logits of prompt 0 change with how it is run") as found:
        check_decoder(case)
    assert "taken in pieces of [17, 1, 5, 17]" in str(found.value)
    assert repr(case) in str(found.value)
    (script,) = found.value.__notes__
    assert "bi_compile" not in script, "it stands alone"
    with pytest.raises(AssertionError, match=r"expected, alone: \[.*\]\ngot, in pieces: \["):
        run_program(script)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_program_is_the_check(cache):
    case = Decoder("mistral", 2, 1, 32, inner=7, window=3, lengths=(17, 5), cuts=(5, 1), cache=cache)
    run_program(decoder_script_of(case, backend="canonical"))
    script = decoder_script_of(case, backend="eager")
    names = {}
    exec(script, names)
    for one, other in zip(names["build"]().parameters(), case.model().parameters(), strict=True):
        assert_same_bits(one, other)


def run_program(script: str) -> None:
    names = {}
    with torch.random.fork_rng():
        exec(script, names)
        names["test_a_prompt_has_the_same_bits_in_the_batch"]()


def test_a_decoder_shrinks():
    case = Decoder("phi3", 6, 3, 14, 2, 33, 8, (17, 40, 3), (5, 2), "static", "bfloat16", 3)

    def fails(case: Decoder) -> bool:
        return max(case.lengths) > 8 and case.heads > case.kv_heads

    assert smallest(case, fails, tries=200) == Decoder(heads=2, lengths=(9,), cuts=(1,))


@settings(max_examples=10, deadline=None)
@given(case=decoders())
def test_the_strategy_draws_cases_that_add_up(case):
    assert sum(case.sizes) == max(case.lengths)
    assert case.heads % case.kv_heads == 0
    assert eval(repr(case)) == case


def test_decoders_shrink_to_one_head_and_few_tokens():
    case = find(decoders(), lambda case: max(case.lengths) > 3, settings=SEARCH)
    assert case == Decoder(inner=1, lengths=(4,), cuts=(1,))
    with pytest.raises(ValueError, match=r"families \['fly'\] unknown"):
        find(decoders(families=["fly"]), lambda case: True)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_its_data(family):
    case = Decoder(family, heads=2, kv_heads=2, head_size=8, window=3, lengths=(7, 2))
    state = torch.random.get_rng_state()
    logits = case.alone(case.model())
    assert [tuple(x.shape) for x in logits] == [(7, 97), (2, 97)]
    for one, other in zip(logits, case.alone(case.model()), strict=True):
        assert_same_bits(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"cache": "quantized"}, ValueError, "cache must be one of 'dynamic', 'static', not 'quantized'"),
        ({"family": "nope"}, ValueError, "family must be one of 'llama', .*, not 'nope'"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of 'float32'"),
        ({"heads": 3, "kv_heads": 2}, ValueError, "heads must be a multiple of kv_heads, which is 2, not 3"),
        ({"head_size": 3}, ValueError, "head_size must be even, not 3"),
        ({"cuts": (2, 0)}, ValueError, r"cuts\[1\] must be at least 1, not 0"),
        ({"lengths": ()}, ValueError, "lengths is empty"),
        ({"seed": 0.5}, TypeError, "seed must be an integer, not 0.5"),
    ],
)
def test_a_decoder_that_cannot_be_is_told_by_name(setting, error, message):
    with pytest.raises(error, match=message):
        Decoder(**setting)
