"""Mixtures of experts as transformers writes them, as a loop, in groups and in batches: the same bits."""

from dataclasses import replace

import pytest
import torch
import transformers

import bi_compile
from bi_compile.report import collect
from bi_compile.testing import assert_batch_invariant
from tests.architectures.check import constant_floats
from tests.architectures.zoo import ARCHITECTURES
from tests.bits import assert_same_bits

WAYS = {"eager": "bi_compile.mm", "grouped_mm": "bi_compile.grouped_mm", "batched_mm": "bi_compile.bmm"}
SMALL = next(entry for entry in ARCHITECTURES if entry.name == "mixtral")
# Wide enough for stock products to show the batch.
ENTRY = replace(SMALL, settings={**SMALL.settings, "hidden_size": 300, "intermediate_size": 400})


def mixtral(way: str, dtype: torch.dtype):
    model = ENTRY.build(dtype)
    model.set_experts_implementation(way)
    assert isinstance(model, transformers.MixtralForCausalLM)
    return model


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_gives_the_same_bits_outside_graphs(dtype):
    inputs = tuple(ENTRY.samples(5, dtype).values())
    models = {way: ENTRY.call(mixtral(way, dtype)) for way in WAYS}
    with bi_compile.eager():
        outputs = {way: model(*inputs) for way, model in models.items()}
        alone = models["grouped_mm"](*(x[2:3] for x in inputs))
    for name, want in outputs["batched_mm"].items():
        assert_same_bits(outputs["grouped_mm"][name], want)
        assert_same_bits(alone[name], want[2:3])


@torch.inference_mode()
@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
def test_compiled_in_any_batch(way):
    """The router and its experts: what surrounds them is the same in all ways, see `tests/architectures`."""
    torch.compiler.reset()
    # Stock grouped products ask for strides that these sizes do not have.
    ours, control = (mixtral(name, torch.float32).model.layers[0].mlp for name in (way, "batched_mm"))
    with collect() as report, constant_floats():
        compiled = torch.compile(ours, backend="batch_invariant", dynamic=True)
        # One token a sample: its products with stock PyTorch differ from those of many on every processor.
        one_token = torch.randn(6, 1, 300)
        assert_batch_invariant(compiled, one_token, trials=1, control=control, reference=control)
        assert_batch_invariant(compiled, torch.randn(6, 11, 300), trials=1, reference=control)
    assert not report.refused
    assert report.canonical[WAYS[way]] or report.breaks
