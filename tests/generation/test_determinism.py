"""The experiment of examples/determinism.py in small: random weights, few completions among others."""

import itertools
import sys
from pathlib import Path

import pytest
import torch

import bi_compile

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "examples"))
import determinism
from decoder import Decoder, Sizes, encode
from determinism import measure, sensitive_prompt

PROMPT = encode("Return a list of all")
SIZES = Sizes(width=60, layers=2, heads=6, kv_heads=2, hidden=118, context=96)


def model(dtype: torch.dtype) -> Decoder:
    torch.manual_seed(1)
    return Decoder(SIZES).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_completion_and_the_logits_of_a_full_forward(dtype, temperature):
    stock = model(dtype)
    ours = bi_compile.eager()(stock)
    found = measure(stock, ours, PROMPT, temperature, completions=12, tokens=32, slots=6)
    assert len(found.completions) == 1
    assert (found.rows, found.logits_changed, found.unlike_forward) == (12 * 32, 0, 0)
    assert len(found.batch_sizes) >= 3, "requests came and went"


def test_stock_logits_change():
    """The control."""
    stock = model(torch.float32)
    found = measure(stock, stock, PROMPT, 0.0, completions=8, tokens=40, slots=6)
    assert found.logits_changed + found.unlike_forward > 0


def test_the_prompt_is_one_that_wavers(monkeypatch):
    """Not the closest call, where another's completions differ; the closest where none do."""
    monkeypatch.setattr(determinism, "CANDIDATES", 40)
    monkeypatch.setattr(determinism, "CLOSEST", 3)
    monkeypatch.setattr(determinism, "COPIES", 4)
    stock, seen = model(torch.float32), []
    closest = determinism._closest_calls

    def watched(model, prompts, tokens):
        seen.append((prompts, closest(model, prompts, tokens)))
        return seen[-1][1]

    monkeypatch.setattr(determinism, "_closest_calls", watched)
    ticks = []
    calm = sensitive_prompt(stock, [stock], 16, 6, lambda: ticks.append(1))
    assert len(ticks) == 3 * 4
    prompts, margins = seen[0]
    order = prompts[margins.argsort()].tolist()
    assert calm == order[0]

    def values(cache):
        """Of the first layer they follow from the tokens of the prompt alone."""
        return cache[0][1][:, :, : determinism.PROMPT_LENGTH]

    target = stock.empty_cache(1)
    positions = torch.arange(determinism.PROMPT_LENGTH).unsqueeze(0)
    stock(torch.tensor(order[1:2]), positions, target)
    calls = itertools.count()

    def wavering(ids, positions, cache):
        logits = stock(ids, positions, cache)
        same = (values(cache) - values(target)).abs().amax((1, 2, 3)) < 1e-4
        return torch.where(same[:, None, None], logits.roll(next(calls) % 2, dims=-1), logits)

    assert sensitive_prompt(stock, [wavering, stock], 16, 6) == order[1]
