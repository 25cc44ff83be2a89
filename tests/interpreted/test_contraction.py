"""Matrix products in Triton without a GPU: the oracle's bits in the interpreter, whatever the configuration.

The instruction of the tensor core is a model here, the same for kernel and oracle; what is compared is the
order of its sums. `tests/gpu/` runs the kernels on a device.
"""

import numpy as np
import pytest
import torch

from bi_compile import numerics
from tests.bits import assert_same_bits, order_sensitive
from tests.interpreted import interpreter

from bi_compile.templates.contraction import gpu, gpu_configs, gpu_oracle, gpu_tuning  # isort: skip
from bi_compile.templates.contraction.gpu_configs import Config  # isort: skip
from bi_compile.templates.gpu import device  # isort: skip

HOPPER = device.Processor(90, 132, 232448)
AMPERE = device.Processor(80, 108, 166912)
BLACKWELL = device.Processor(100, 148, 232448)
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
FORMS = {
    "pointers": {},
    "swapped pointers": {"swap": True},
    "descriptors": {"descriptors": True},
    "swapped descriptors": {"swap": True, "descriptors": True},
    "wide": {"block_n": 16, "descriptors": True, "wide": True},
    "pieces": {"block_m": 32, "warps": 1},
    "swapped pieces": {"block_m": 32, "warps": 1, "swap": True, "descriptors": True},
    "waiting": {"block_m": 128, "block_n": 256, "warps": 8, "descriptors": True},
    "parallel pointers": {"parallel": True},
    "parallel descriptors": {"descriptors": True, "parallel": True},
    "parallel wide": {"block_n": 16, "descriptors": True, "wide": True, "parallel": True},
}


def config(form: str) -> Config:
    return Config(**{"block_m": 16, "block_n": 32, "block_k": 32, "warps": 4, "stages": 3, **FORMS[form]})


def dot(a, b, total, dtype, precision):
    if dtype == "fp32":
        assert precision == "tf32x3"
        return gpu_oracle.block_fp32(a, b, gpu_oracle.fused_sum) + total
    smallest = -14 if dtype == "fp16" else -126
    for k in range(0, a.shape[1], 16):
        total = gpu_oracle.fused_sum(total, a[:, k : k + 16], b[k : k + 16], smallest)
    return total


@pytest.fixture
def constant(monkeypatch):
    """Sets a constant of the tree, which plans remember."""

    def set_to(name: str, value: int) -> None:
        monkeypatch.setattr(numerics, name, value)
        gpu._plan.cache_clear()
        gpu_configs.choose.cache_clear()

    return set_to


@pytest.fixture(autouse=True)
def small_chunks_on_a_hopper(monkeypatch, constant):
    interpreter.use_dot(dot)
    monkeypatch.setattr(device, "processor", lambda index: HOPPER)
    monkeypatch.setattr(gpu_tuning, "tuned", lambda index: {})
    constant("CONTRACTION_GPU_CHUNK", 256)
    constant("CONTRACTION_GPU_FP32_CHUNK", 64)


def data(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return order_sensitive(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# fp32 tells its operands apart, so no configuration swaps them.
CASES = [
    (form, dtype) for form in FORMS for dtype in (BF16, FP16, FP32) if dtype != FP32 or "swap" not in form
]


@pytest.mark.parametrize(("form", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_every_form_equals_the_oracle(form, dtype, constant, monkeypatch):
    constant("CONTRACTION_GPU_CHUNK", 64)
    if "pieces" in form:
        # Elsewhere tiles are stored whole.
        monkeypatch.setattr(device, "processor", lambda index: BLACKWELL)
        assert config(form).piece == 16
    assert config(form).waits(90, "sequence") == (form == "waiting")
    for m, n, k in ((1, 33, 40), (19, 50, 168)):
        a, w, c = data(m, k, dtype=dtype), data(n, k, dtype=dtype, seed=1), data(n, dtype=dtype, seed=2)
        expected = gpu_oracle.product(a, w.t(), c, alpha=0.5)
        for b in (w.t(), w.t().contiguous()):
            found = gpu.product(a, b, c, alpha=0.5, config=config(form))
            assert_same_bits(found, expected, f"{m} {n} {k} {b.stride()}")


def test_what_waits_is_that_of_one_tile_at_a_time(constant, monkeypatch):
    """Of several that one program does, or two."""
    constant("CONTRACTION_GPU_CHUNK", 64)
    a, w = data(130, 168, dtype=BF16), data(300, 168, dtype=BF16, seed=1)
    expected = gpu_oracle.product(a, w.t())
    for programs in (1, 2):
        monkeypatch.setattr(device, "processor", lambda index, n=programs: HOPPER._replace(multiprocessors=n))
        gpu._plan.cache_clear()
        assert_same_bits(gpu.product(a, w.t(), config=config("waiting")), expected, f"{programs} programs")


def test_control_a_plain_chain_has_other_bits(constant):
    a, b = data(19, 168, dtype=BF16), data(168, 50, dtype=BF16, seed=1)
    constant("CONTRACTION_GPU_CHUNK", 64)
    chunked = gpu.product(a, b, config=config("pointers"))
    constant("CONTRACTION_GPU_CHUNK", 4096)
    plain = gpu.product(a, b, config=config("pointers"))
    assert not torch.equal(chunked, plain)
    assert_same_bits(plain, gpu_oracle.product(a, b), "plain")


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_rows_and_columns_do_not_see_the_others(dtype):
    a, b, c = data(20, 130, dtype=dtype), data(130, 36, dtype=dtype, seed=1), data(20, 36, dtype=dtype)
    whole = gpu.addmm(c, a, b, beta=0.5)
    assert_same_bits(gpu.addmm(c[3:4], a[3:4], b, beta=0.5), whole[3:4], "a row alone")
    assert_same_bits(gpu.addmm(c[:, 5:9], a, b[:, 5:9], beta=0.5), whole[:, 5:9], "columns")
    other = torch.cat([a[:2], torch.full_like(a[:3], torch.nan), torch.full_like(a[:1], torch.inf)])
    assert_same_bits(gpu.mm(other, b)[:2], gpu.mm(a, b)[:2], "neighbours")
    room = torch.full((41, 3 * 130), torch.nan, dtype=dtype)
    view = room[1::2, ::3].copy_(a)
    assert_same_bits(gpu.addmm(c, view, b, beta=0.5), whole, "a view")


@pytest.mark.parametrize("dtype", [BF16, FP32, FP64], ids=str)
def test_a_matrix_does_not_see_the_batch(dtype):
    a, b, c = data(3, 5, 70, dtype=dtype), data(3, 70, 9, dtype=dtype, seed=1), data(3, 1, 9, dtype=dtype)
    whole = gpu.baddbmm(c, a, b, alpha=2, beta=-0.7)
    for i in range(3):
        assert_same_bits(gpu.addmm(c[i], a[i], b[i], alpha=2, beta=-0.7), whole[i], f"matrix {i}")
    assert_same_bits(gpu.bmm(a[:1].expand(3, 5, 70), b), gpu.bmm(a[:1].repeat(3, 1, 1), b), "expanded")


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_near_the_truth(dtype):
    a, w, bias = torch.randn(2, 5, 200).to(dtype), torch.randn(30, 200).to(dtype), torch.randn(30).to(dtype)
    found = gpu.linear(a, w, bias)
    truth = a.double() @ w.double().t() + bias.double()
    error = (found.double() - truth).abs().max() / truth.abs().max()
    assert found.shape == (2, 5, 30)
    assert error <= {FP64: 1e-15, FP32: 2e-7}.get(dtype, torch.finfo(dtype).eps)


def test_fp64_is_chains_of_fused_multiply_adds(constant):
    constant("CONTRACTION_CHUNK", 32)
    a, b = data(3, 70, dtype=FP64), data(70, 5, dtype=FP64, seed=1)
    total = np.zeros((3, 5))
    for begin in range(0, 70, 32):
        chain = np.zeros((3, 5))
        for k in range(begin, min(70, begin + 32)):
            # The interpreter's fused multiply-add of fp64 rounds twice, as numpy does: the order is compared.
            chain = a[:, k : k + 1].numpy() * b[k : k + 1].numpy() + chain
        total += chain
    assert_same_bits(gpu.mm(a, b), torch.from_numpy(total), "fp64")


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 5, 0), (3, 0, 7)])
@pytest.mark.parametrize("dtype", [BF16, FP32, FP64], ids=str)
def test_empty_products(shape, dtype):
    m, k, n = shape
    a, b, c = (torch.ones(*s, dtype=dtype) for s in ((m, k), (k, n), (n,)))
    assert_same_bits(gpu.addmm(c, a, b), torch.addmm(c, a, b), str(shape))


@pytest.mark.parametrize("processor", [HOPPER, AMPERE], ids=["hopper", "ampere"])
def test_the_chosen_configurations_equal_the_oracle(processor, monkeypatch):
    monkeypatch.setattr(device, "processor", lambda index: processor)
    gpu._plan.cache_clear()
    for dtype in (BF16, FP32):
        w = data(40, 296, dtype=dtype, seed=1)
        for m in (1, 40):
            a = data(m, 296, dtype=dtype)
            assert_same_bits(gpu.mm(a, w.t()), gpu_oracle.product(a, w.t()), f"{dtype} {m}")
