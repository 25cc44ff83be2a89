"""Both halves of a product and what becomes of them in Triton without a GPU: the bits of ops one by one."""

import pytest
import torch

from tests.bits import assert_same_bits
from tests.interpreted.test_contraction import BF16, FP32, HOPPER, data
from tests.interpreted.test_epilogue import DTYPES, ENDS, one_nan, small_chunks_on_a_hopper
from tests.templates.activations import programs_of_halves

from bi_compile.templates.contraction import epilogue, gpu, gpu_grouped, gpu_halves, gpu_oracle  # isort: skip
from bi_compile.templates.contraction.gpu_configs import Config  # isort: skip
from bi_compile.templates.gpu import device  # isort: skip

chunks = small_chunks_on_a_hopper
HALF = 40
TILES = {
    "plain": Config(16, 32, 32, 4, 3, descriptors=True),
    "swapped": Config(16, 64, 32, 4, 3, swap=True, descriptors=True),
    "pieces": Config(32, 64, 32, 1, 3, descriptors=True),
}
"""block_n holds both halves."""
WITH_A_SUM = "t1 = mul(p, q); t2 = add(t1, o)"


def factors(groups: int, dtype: torch.dtype, k: int) -> tuple[torch.Tensor, ...]:
    """a with a NaN, b as models hand it over, [2 N, K] transposed, and another tensor."""
    shapes = (29, k), ((groups,) if groups else ()) + (2 * HALF, k), (29, HALF)
    a, b, other = (data(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    a[3, 0] = torch.nan
    return a / 32, b.mT / 32, other / 512


def by_oracle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if b.dim() == 2:
        return gpu_oracle.product(a, b)
    product, begin = a.new_zeros(a.shape[0], b.shape[-1]), 0
    for weight, end in zip(b, ENDS, strict=True):
        product[begin:end] = gpu_oracle.product(a[begin:end], weight)
        begin = end
    return product


@DTYPES
@pytest.mark.parametrize("groups", [0, len(ENDS)], ids=["rows", "groups"])
def test_side_by_side_or_stored_first(groups, dtype):
    ends = torch.tensor(ENDS) if groups else None
    a, b, other = factors(groups, dtype, 296)
    product = by_oracle(a, b)
    assert product.isnan().any()
    programs = programs_of_halves(dtype)
    for program, beside in ((programs["gated halves"], None), (WITH_A_SUM, other)):
        expected = one_nan(epilogue.run(program, product, beside))
        assert_same_bits(one_nan(gpu_halves.finish(product, beside, program)), expected, "stored")
        for name, tile in TILES.items():
            if dtype == FP32 and tile.swap:
                continue
            found = gpu_halves.side_by_side(a, b, ends, beside, program, config=tile)
            assert_same_bits(one_nan(found), expected, f"{name} {program}")
    # The control: halves that change places.
    exchanged = gpu_halves.side_by_side(
        a, b.mT.roll(HALF, -2).mT, ends, None, programs["gate behind"], config=tile
    )
    in_place = epilogue.run(programs["gate behind"], product, None)
    assert not torch.equal(exchanged.nan_to_num(), in_place.nan_to_num())


def test_weights_that_lie_the_other_way():
    a, b, _ = factors(len(ENDS), BF16, 64)
    program, tile = programs_of_halves(BF16)["gate behind"], TILES["plain"]
    expected = gpu_halves.side_by_side(a, b, torch.tensor(ENDS), None, program, config=tile)
    poisoned = b.contiguous()
    poisoned[3] = torch.nan
    found = gpu_halves.side_by_side(a, poisoned, torch.tensor(ENDS), None, program, config=tile)
    assert_same_bits(one_nan(found[:3]), one_nan(expected[:3]), "the next group's weights")
    assert found[3:24].isnan().all()
    a, b, _ = factors(len(ENDS), BF16, 72)
    assert gpu_halves.side_by_side(a, b.contiguous(), torch.tensor(ENDS), None, program, config=tile) is None


def test_the_ops():
    """What is chosen for them, whichever it is: of one weight, of several, of a batch, with a bias."""
    program, ends = programs_of_halves(BF16)["gated halves"], torch.tensor(ENDS)
    a, b, _ = factors(0, BF16, 296)
    bias = data(2 * HALF, dtype=BF16, seed=5) / 512
    expected = epilogue.run(program, by_oracle(a, b), None)
    assert_same_bits(one_nan(gpu.linear_epilogue(a[None], b.t(), None, None, program))[0], one_nan(expected))
    assert_same_bits(one_nan(gpu.product_epilogue(a, b, None, None, program)), one_nan(expected))
    expected = epilogue.run(program, gpu_oracle.product(a, b, bias), None)
    assert_same_bits(one_nan(gpu.linear_epilogue(a, b.t(), bias, None, program)), one_nan(expected))
    assert_same_bits(
        one_nan(gpu.product_epilogue(a[None], b[None], bias, None, program))[0], one_nan(expected)
    )
    assert gpu.product_epilogue(a[:0], b, None, None, program).shape == (0, HALF)
    a, b, _ = factors(len(ENDS), BF16, 296)
    expected = epilogue.run(program, by_oracle(a, b), None)
    assert_same_bits(one_nan(gpu.grouped_mm_epilogue(a, b, ends, None, program)), one_nan(expected))
    product = gpu_grouped.grouped_mm(a.double(), b.double(), ends)
    light = "t1 = mul(p, q)"
    found = gpu.grouped_mm_epilogue(a.double(), b.double(), ends, None, light)
    assert_same_bits(one_nan(found), one_nan(epilogue.run(light, product, None)))
    none = gpu.grouped_mm_epilogue(a, b[:0], ends[:0], None, light)
    assert_same_bits(none, torch.zeros(29, HALF, dtype=BF16))


@pytest.mark.parametrize("groups", [0, 8])
def test_a_wave_of_small_tiles_is_summed_side_by_side(groups, monkeypatch):
    program = programs_of_halves(BF16)["gated halves"]

    def plan(m: int, n: int, k: int = 1024, dtype: torch.dtype = BF16):
        weight = torch.empty((groups, n, k) if groups else (n, k), dtype=dtype, device="meta").mT
        a = torch.empty(m, k, dtype=dtype, device="meta")
        shapes = a.shape, a.stride(), weight.shape, weight.stride()
        return gpu_halves._plan(0, dtype, groups, *shapes, True, program, None)

    monkeypatch.setattr(gpu_halves.numerics, "CONTRACTION_GPU_CHUNK", 4096)
    assert plan(1, 1536) is not None
    assert plan(8, 1536) is not None
    assert plan(8, 65536) is None, "several waves"
    assert plan(8192, 8192) is None, "large tiles"
    monkeypatch.setattr(device, "processor", lambda index: HOPPER._replace(capability=80))
    gpu_halves._plan.cache_clear()
    assert plan(1, 1536) is None, "no descriptors"
