"""Scans in Triton without a GPU: the chains of the oracle, bit for bit, in the interpreter."""

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.compiled import run_compiled
from tests.templates.rows import DTYPES, LAYOUTS, data, sample

from bi_compile.templates.scan import gpu, oracle  # isort: skip

exp, log = interpreter.numpy_function("exp"), interpreter.numpy_function("log")
OPS = {
    "cumsum": (gpu.cumsum, oracle.cumsum),
    "cumprod": (gpu.cumprod, oracle.cumprod),
    "logcumsumexp": (
        gpu.logcumsumexp,
        lambda x, dim: oracle.logcumsumexp(x, dim, exp, lambda y: log(1.0 + y)),
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(OPS))
def test_the_chains_of_the_oracle(name, dtype):
    op, by_hand = OPS[name]
    for shape, dim in (((3, 33), 1), ((17, 40), 0), ((2, 5, 3), 1), ((), 0)):
        x = sample(name, *shape, dtype=dtype, specials=True)
        assert_same_bits(op(x, dim), by_hand(x, dim), f"{name} of {shape} over {dim}")


def test_scans_of_nothing():
    for op, _ in OPS.values():
        assert op(torch.empty(2, 0), 1).shape == op(torch.empty(2, 0), 0).shape == (2, 0)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_any_layout(layout):
    x = LAYOUTS[layout](sample("cumsum", 3, 20, 5, dtype=torch.float32, specials=True))
    for dim in (0, 1, -1):
        assert_same_bits(gpu.cumsum(x, dim), oracle.cumsum(x, dim), f"{layout} over {dim}")


def test_a_sequence_scanned_in_parts_goes_on_from_its_last_element():
    x = data(2, 50, dtype=torch.float32)
    whole = gpu.cumsum(x, 1)
    rest = torch.cat([whole[:, 29:30], x[:, 30:]], 1)
    assert_same_bits(gpu.cumsum(rest, 1)[:, 1:].contiguous(), whole[:, 30:].contiguous())
    assert not torch.equal(gpu.cumsum(x.flip(1), 1)[:, -1], whole[:, -1])


_BUILD = """
import torch
from bi_compile.templates.scan import gpu
compiled.compile_launches({capability})
for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
    for op in (gpu.cumsum, gpu.cumprod, gpu.logcumsumexp):
        op(torch.empty(100, 4096, dtype=dtype), 1)
for build in compiled.BUILDS:
    assert compiled.check(build) == "sums of 2 by scalar instructions"
print(len(compiled.BUILDS))
"""


@pytest.mark.parametrize("capability", [80, 86, 90, 100])
def test_compiled_kernels_spill_nothing(capability):
    assert int(run_compiled(_BUILD.format(capability=capability))) == 12
