"""Real architectures through `torch.compile(backend="batch_invariant")` on a CUDA device, fp32 and bf16.

The check is that of `tests/architectures`: batches of 1 to 33, padding, nothing left to stock, and as close
to float64 as stock eager is.
"""

import pytest
import torch

from tests.architectures.check import INVARIANT, Verdict, check, stock_varies
from tests.architectures.zoo import ARCHITECTURES

NAMES = (
    "bert", "distilbert", "albert", "electra", "mpnet", "roberta", "gpt2", "gpt-neox", "llama", "qwen2",
    "qwen3",
    "mistral", "phi3", "opt", "olmo2", "gemma2", "vit", "convnext", "timm resnet18", "timm mobilenetv3",
)  # fmt: skip
CHOSEN = [a for a in ARCHITECTURES if a.name in NAMES]


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
