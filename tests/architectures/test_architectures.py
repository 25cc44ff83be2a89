"""Real architectures through `torch.compile(backend="batch_invariant")`, fp32 and bf16.

Each gives every sample the same bits in batches of 1 to 33 with random members and positions, all of one
length and padded on the right; is as close to float64 as stock eager is; and nothing in it fell back. A few
run here, with one layer for two; `make architectures` runs the whole list and writes docs/architectures.md.
"""

import os
from dataclasses import replace

import pytest
import torch

from tests.architectures.check import DTYPES, INVARIANT, REFUSED, Verdict, check, stock_varies
from tests.architectures.zoo import ARCHITECTURES, Architecture

# The thorough profile also makes every size symbolic where one would do.
THOROUGH = os.environ.get("BI_COMPILE_TEST_PROFILE") == "thorough"
DYNAMIC = [None, True] if THOROUGH else [None]
FAST = {
    "bert": DTYPES,
    "llama": DTYPES,
    "deberta-v2": ["bf16"],
    "gpt2": ["bf16"],
    "t5": ["fp32"],
    "vit": ["bf16"],
    "resnet": ["fp32"],
}
LAYERS = {"num_hidden_layers", "num_layers", "n_layer"}


def shallow(architecture: Architecture) -> Architecture:
    """The same with one layer: where it ends and the head begins, its kernels are those between layers."""
    settings = architecture.settings
    return replace(architecture, settings=settings | dict.fromkeys(LAYERS & set(settings), 1))


CHOSEN = ARCHITECTURES if THOROUGH else [shallow(a) for a in ARCHITECTURES if a.name in FAST]
CASES = [(a, dtype) for a in CHOSEN for dtype in (DTYPES if THOROUGH else FAST[a.name])]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("architecture", "dtype"), CASES, ids=lambda case: getattr(case, "name", case))
@pytest.mark.parametrize("dynamic", DYNAMIC, ids="dynamic={}".format)
def test_invariant_or_refused_as_expected(architecture, dtype, dynamic):
    expected = Verdict(REFUSED, op) if (op := architecture.refused.get(dtype)) else Verdict(INVARIANT)
    assert check(architecture, dtype, dynamic=dynamic) == expected


def test_stock_pytorch_fails_the_same_check():
    """The control over the list: without it, small models could be invariant by luck.

    How many change depends on the processor: on some, MKL has one kernel for all these small sizes.
    """
    assert sum(bool(stock_varies(architecture, "fp32")) for architecture in CHOSEN) >= len(CHOSEN) // 4


def test_names_are_unique():
    names = [architecture.name for architecture in ARCHITECTURES]
    assert len(set(names)) == len(names) >= 80
