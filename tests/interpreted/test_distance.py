"""Distances in Triton without a GPU: the oracle's bits in the interpreter, and no spills when compiled."""

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.compiled import run_compiled
from tests.templates.rows import DTYPES, LAYOUTS, data

from bi_compile.templates.distance import gpu, oracle  # isort: skip

exp, log = interpreter.numpy_function("exp"), interpreter.numpy_function("log")
ORDERS = (0.0, 1.0, 2.0, 3.0, 0.5, float("inf"))
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def pow(x: torch.Tensor, y: float) -> torch.Tensor:
    """As the interpreter's kernels have it, which know no power."""
    return exp(y * log(x))


@pytest.mark.parametrize("p", ORDERS)
def test_kernels_are_the_oracle(p):
    for dtype, batch, n in zip(DTYPES, ((), (2,), (2, 3), ()), (33, 7, 1, 1030), strict=True):
        a = data(*batch, 3, n, dtype=dtype, specials=True)
        b = data(*batch, 4, n, dtype=dtype, seed=1)
        assert_same_bits(gpu.cdist(a, b, p), oracle.cdist(a, b, p, pow), f"{dtype} {n}")


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_any_layout(layout):
    a, b = (LAYOUTS[layout](data(2, 3, 70, dtype=torch.float32, seed=seed)) for seed in (0, 1))
    assert_same_bits(gpu.cdist(a, b, 2.0), oracle.cdist(a, b, 2.0), layout)


def test_a_distance_depends_on_its_two_rows_alone():
    a, b = data(3, 70, dtype=torch.float32), data(5, 70, dtype=torch.float32, seed=1)
    alone = gpu.cdist(a, b[:2], 2.0)
    batch = torch.cat([torch.full((4, 70), torch.nan), a])
    assert_same_bits(gpu.cdist(batch, b, 2.0)[4:, :2].contiguous(), alone)
    assert_same_bits(gpu.cdist(a[None], b[None].expand(2, 5, 70)[:1], 2.0)[0, :, :2].contiguous(), alone)


def test_nothing():
    assert_same_bits(gpu.cdist(torch.ones(2, 0), torch.ones(3, 0), float("inf")), torch.zeros(2, 3))
    assert gpu.cdist(torch.ones(0, 4), torch.ones(3, 4), 2.0).shape == (0, 3)
    assert gpu.cdist(torch.ones(0, 2, 4), torch.ones(0, 3, 4), 2.0).shape == (0, 2, 3)


_BUILD = """
import torch
from bi_compile.templates.distance import gpu
compiled.compile_launches({capability})
dtypes = torch.bfloat16, torch.float16, torch.float32, torch.float64
cases = [(dtype, 128, 2.0) for dtype in dtypes]
cases += [(torch.float32, 128, p) for p in (1.0, 3.0, float("inf"))]
cases += [(dtype, 4096, 2.0) for dtype in dtypes[::2]]
for dtype, n, p in cases:
    gpu.cdist(torch.empty(50, n, dtype=dtype), torch.empty(60, n, dtype=dtype), p)
for build in compiled.BUILDS:
    assert compiled.check(build) == "sums of 2 by scalar instructions"
print(len(compiled.BUILDS))
"""


@pytest.mark.parametrize("capability", [80, 86, 90, 100])
def test_compiled_kernels_spill_nothing(capability):
    assert int(run_compiled(_BUILD.format(capability=capability))) == 9
