"""Reductions by index in Triton without a GPU: the chains of the oracle, bit for bit, in the interpreter."""

import pytest
import torch

from tests.bits import assert_same_bits, order_sensitive
from tests.interpreted import interpreter as _  # noqa: F401  (before any kernel)
from tests.interpreted.compiled import run_compiled
from tests.templates.rows import DTYPES, LAYOUTS, sample
from tests.templates.test_scatter import INDICES, forms_of_index

from bi_compile.templates.scatter import gpu, oracle  # isort: skip
from bi_compile.templates.scatter.contract import REDUCTIONS  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_chains_of_the_oracle(reduce, include_self):
    for k, (dtype, layout) in enumerate(zip((*DTYPES, torch.float32), sorted(LAYOUTS), strict=True)):
        for dim in (0, 1, -1):
            src = LAYOUTS[layout](sample(reduce, 3, 7, 4, dtype=dtype, seed=k, specials=True))
            shape = [3, 7, 4]
            shape[dim] = 5
            x = sample(reduce, *shape, dtype=dtype, seed=k + 9, specials=True)
            for index in forms_of_index((3, 7, 4), dim, 5):
                arguments = (x, dim, index, src, reduce, include_self)
                found, expected = gpu.scatter_reduce(*arguments), oracle.scatter_reduce(*arguments)
                assert_same_bits(found, expected, f"{reduce} {dtype} {layout} over {dim}")


@pytest.mark.parametrize("name", INDICES)
def test_any_mix_of_indices(name):
    indices = INDICES[name]
    x = order_sensitive(4, 5, 6)
    picked = x[tuple(slice(None) if i is None else i for i in indices)]
    values = order_sensitive(*picked.shape)
    found = gpu.index_put_add(x, indices, values)
    assert_same_bits(found, oracle.index_put_add(x, indices, values), name)


def test_scalars_and_nothing():
    one = torch.tensor(1.0)
    assert gpu.scatter_reduce(one, 0, torch.tensor(0), torch.tensor(2.0), "sum", True) == 3
    empty = torch.empty(0, dtype=torch.long)
    assert_same_bits(gpu.scatter_reduce(torch.ones(3), 0, empty, torch.empty(0), "sum", True), torch.ones(3))


def test_an_index_out_of_range_is_seen():
    for index in (5, -1):
        with pytest.raises(RuntimeError, match="index out of range of the slots"):
            gpu.scatter_reduce(torch.ones(5), 0, torch.tensor([index]), torch.ones(1), "sum", True)


def test_the_order_is_seen_by_the_data():
    src, index = order_sensitive(300), torch.zeros(300, dtype=torch.long)
    found = [gpu.scatter_reduce(torch.zeros(1), 0, index, s, "sum", True) for s in (src, src.flip(0))]
    assert not torch.equal(*found)


_BUILD = """
import torch
from bi_compile.templates.scatter import gpu
compiled.compile_launches({capability})
for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
    for reduce in ("sum", "mean", "amax"):
        x, src = torch.zeros(8, 32, dtype=dtype), torch.zeros(64, 32, dtype=dtype)
        for columns in (1, 32):
            index = torch.zeros(64, columns, dtype=torch.long).expand(64, 32)
            gpu.scatter_reduce(x, 0, index, src, reduce, True)
for build in compiled.BUILDS:
    assert compiled.check(build) == "sums of 2 by scalar instructions"
print(len(compiled.BUILDS))
"""


@pytest.mark.parametrize("capability", [80, 86, 90, 100])
def test_compiled_kernels_spill_nothing(capability):
    assert int(run_compiled(_BUILD.format(capability=capability))) == 24
