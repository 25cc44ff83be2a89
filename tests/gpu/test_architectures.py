"""Real architectures through `torch.compile(backend="batch_invariant")` on a CUDA device, fp32 and bf16.

The check is that of `tests/architectures`: batches of 1 to 33, padding, nothing left to stock, and as close
to float64 as stock eager is.
"""

from dataclasses import replace

import pytest
import torch

from bi_compile.report import collect
from tests.architectures.check import INVARIANT, Verdict, check, stock_varies
from tests.architectures.zoo import ARCHITECTURES
from tests.bits import assert_same_bits

NAMES = (
    "bert", "distilbert", "albert", "electra", "mpnet", "roberta", "gpt2", "gpt-neox", "llama", "qwen2",
    "qwen3",
    "mistral", "phi3", "opt", "olmo2", "gemma2", "vit", "convnext", "timm resnet18", "timm mobilenetv3",
)  # fmt: skip
MIXTRAL = next(a for a in ARCHITECTURES if a.name == "mixtral")
# Sizes whose strides stock grouped products take.
WIDE = {**MIXTRAL.settings, "hidden_size": 96, "intermediate_size": 136}
GROUPED = replace(MIXTRAL, name="mixtral, grouped", experts="grouped_mm", settings=WIDE)
CHOSEN = [*(a for a in ARCHITECTURES if a.name in NAMES), GROUPED]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("architecture", CHOSEN, ids=lambda a: a.name)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_invariant(architecture, dtype):
    assert check(architecture, dtype, device="cuda") == Verdict(INVARIANT)


def test_stock_pytorch_fails_the_same_check():
    """The control over the list, as far as it takes to find enough that do."""
    varied = []
    for architecture in CHOSEN:
        if len(varied) < len(CHOSEN) // 4:
            varied += [d for d in ("bf16", "fp32") if stock_varies(architecture, d, device="cuda")][:1]
    assert len(varied) >= len(CHOSEN) // 4


@torch.inference_mode()
def test_grouped_experts_have_the_bits_of_batched_ones():
    # Not in fp32, whose product tells its operands apart: batched ones have the weights on the left.
    dtype = torch.bfloat16
    inputs = [x.cuda() for x in GROUPED.samples(5, dtype).values()]
    found = {}
    for way, op in (("grouped_mm", "bi_compile.grouped_mm"), ("batched_mm", "bi_compile.bmm")):
        model = GROUPED.build(dtype).cuda()
        model.set_experts_implementation(way)
        with collect() as report:
            compiled = torch.compile(GROUPED.call(model), backend="batch_invariant", fullgraph=True)
            found[way] = compiled(*inputs)["logits"]
        assert report.canonical[op]
    assert_same_bits(found["grouped_mm"], found["batched_mm"])
