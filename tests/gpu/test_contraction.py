"""Matrix products on a CUDA device: one order of summation for every M, layout and configuration."""

import numpy as np
import pytest
import torch

import bi_compile
from bi_compile import numerics
from bi_compile.templates import contraction
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits, order_sensitive, same_bits

if torch.cuda.is_available():
    from bi_compile.templates.contraction import (
        gpu,
        gpu_configs,
        gpu_descriptor_kernels,
        gpu_kernels,
        gpu_oracle,
    )
    from bi_compile.templates.gpu import device

bi = torch.ops.bi_compile
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = [BF16, FP16, FP32, FP64]
ROWS = [1, 2, 3, 7, 8, 16, 17, 33, 64, 65, 100, 128, 129, 200, 257, 1024, 4096]


def data(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return order_sensitive(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).cuda()


def configurations(dtype: torch.dtype) -> list:
    """All that are shipped for this device, in both ways through chunks."""
    here = device.processor(torch.cuda.current_device())
    priced = {*gpu_configs.candidates(here, dtype, True), *gpu_configs.candidates(here, dtype, False)}
    return sorted(p.config._replace(parallel=parallel) for p in priced for parallel in (False, True))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("k", [400, 4592], ids=["one chunk", "chunks"])
def test_every_shipped_configuration_has_the_same_bits_for_every_number_of_rows(dtype, k):
    a, w = data(4096, k, dtype=dtype), data(528, k, dtype=dtype, seed=1)
    w[5] *= 2.0**-30 if dtype != FP16 else 2.0**-6
    chosen = configurations(dtype)
    whole = gpu.product(a, w.t(), config=chosen[0])
    for config in chosen if k > 400 else [c for c in chosen if not c.parallel]:
        for m in ROWS:
            start = (m * 37) % (4096 - m + 1)
            found = gpu.product(a[start : start + m], w.t(), config=config)
            assert_same_bits(found, whole[start : start + m], f"{config} {m}")
    assert_same_bits(bi.mm(a, w.t()), whole, "the chosen one")


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_equals_the_oracle(dtype):
    if device.processor(torch.cuda.current_device()).capability != 90:
        pytest.skip("the model of the tensor core is that of Hopper")
    for m, n, k in ((1, 40, 64), (19, 70, 300)):
        a = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).to(dtype)
        w, c = torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)
        expected = gpu_oracle.product(a, w.t(), c, alpha=0.3, beta=-0.7)
        found = bi.addmm(c.cuda(), a.cuda(), w.cuda().t(), alpha=0.3, beta=-0.7)
        assert_same_bits(found.cpu(), expected, f"{m} {n} {k}")


def test_control_stock_rows_see_each_other():
    a, w = data(512, 4096, dtype=BF16), data(1024, 4096, dtype=BF16, seed=1)
    stock, ours = torch.mm(a, w.t()), bi.mm(a, w.t())
    assert any(not same_bits(torch.mm(a[:m], w.t()), stock[:m]) for m in (1, 2, 8, 16, 64))
    for m in (1, 2, 8, 16, 64):
        assert_same_bits(bi.mm(a[:m], w.t()), ours[:m], str(m))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layout_does_not_show(dtype):
    a, b, c = (data(*s, dtype=dtype) for s in ((37, 200), (200, 72), (37, 72)))
    expected = bi.addmm(c, a, b, beta=0.5)

    def strided(x: torch.Tensor) -> torch.Tensor:
        room = torch.full((2 * x.shape[0] + 1, 3 * x.shape[1] + 2), torch.nan, dtype=x.dtype, device="cuda")
        return room[1::2, 2::3].copy_(x)

    for x in (a, a.t().contiguous().t(), strided(a)):
        for y in (b, b.t().contiguous().t(), strided(b)):
            for z in (c, strided(c)):
                assert_same_bits(bi.addmm(z, x, y, beta=0.5), expected, f"{x.stride()} {y.stride()}")
    if dtype != FP32:  # which tells its operands apart
        assert_same_bits(bi.mm(b.t(), a.t()), bi.mm(a, b).t(), "transposed")
    wide = torch.full((64, 256), torch.nan, dtype=dtype, device="cuda")
    inside = wide[3:40, 16:216].copy_(a)
    assert_same_bits(bi.addmm(c, inside, b, beta=0.5), expected, "NaN around a slice")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neighbours_do_not_show(dtype):
    a, w = data(40, 4592, dtype=dtype), data(96, 4592, dtype=dtype, seed=1)
    expected = bi.linear(a[:1], w, None)
    for bad in (torch.nan, torch.inf, 3e4, 0.0):
        other = torch.full_like(a, bad)
        other[17] = a[0]
        assert_same_bits(bi.linear(other, w, None)[17:18], expected, str(bad))
    a[3, 5] = torch.nan
    found = bi.linear(a, w, None)
    assert found[3].isnan().all()
    assert_same_bits(found[:1], expected, "another row has NaN")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_matrix_does_not_see_the_batch(dtype):
    a, b, c = (
        data(9, 33, 600, dtype=dtype),
        data(9, 600, 50, dtype=dtype, seed=1),
        data(9, 1, 50, dtype=dtype),
    )
    whole = bi.baddbmm(c, a, b, alpha=2, beta=-0.7)
    for i in (0, 4, 8):
        assert_same_bits(bi.addmm(c[i], a[i], b[i], alpha=2, beta=-0.7), whole[i], f"matrix {i}")
    x = a[0].reshape(3, 11, 600)
    assert_same_bits(
        bi.linear(x, b[0].t(), c[0, 0]), bi.addmm(c[0], a[0], b[0]).view(3, 11, 50), "linear of 3-D"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 768, 40), (33, 4592, 130), (300, 2000, 72)])
def test_as_near_to_the_truth_as_stock(dtype, shape):
    m, k, n = shape
    a, w, bias = (torch.randn(*s).to(dtype).cuda() for s in ((m, k), (n, k), (n,)))
    # numpy's long double has the bits to judge fp64 by.
    exact = [t.double().cpu().numpy().astype(np.longdouble) for t in (a, w, bias)]
    truth = exact[0] @ exact[1].T + exact[2]

    def error(found: torch.Tensor) -> float:
        return float(np.sqrt(np.square(found.double().cpu().numpy() - truth).mean()) / np.abs(truth).max())

    ours, stock = error(bi.linear(a, w, bias)), error(torch.nn.functional.linear(a, w, bias))
    assert ours <= 1.5 * stock + torch.finfo(dtype).eps / 4


def test_gradients_do_not_see_the_other_samples():
    a, w = data(64, 4592, dtype=BF16).requires_grad_(), data(96, 4592, dtype=BF16, seed=1).requires_grad_()
    grad = data(64, 96, dtype=BF16, seed=2)
    torch.autograd.backward(contraction.linear(a, w), grad)
    alone = a.detach()[5:6].requires_grad_()
    torch.autograd.backward(contraction.linear(alone, w.detach()), grad[5:6])
    assert_same_bits(alone.grad, a.grad[5:6], "gradient of the input")


@pytest.mark.parametrize("m", [1, 300])
def test_replays_of_a_cuda_graph_have_the_bits_of_a_call(m):
    w = data(256, 9216, dtype=BF16, seed=1)
    a = data(m, 9216, dtype=BF16)
    expected, other = bi.linear(a, w, None), data(m, 9216, dtype=BF16, seed=3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = bi.linear(a, w, None)
    for x in (other, a.clone()):
        a.copy_(x)
        graph.replay()
        assert_same_bits(found, bi.linear(x, w, None), "replay")
    assert_same_bits(found, expected, "replay")


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@torch.no_grad()
def test_products_of_several_matrices_have_one_order(dtype):
    torch.compiler.reset()
    a, b = data(30, 40, dtype=dtype, seed=1), data(40, 8, dtype=dtype, seed=2)

    def product(x):
        return torch.linalg.multi_dot([x, a, b])

    x = data(33, 30, dtype=dtype)
    compiled = torch.compile(product, backend="batch_invariant", fullgraph=True)
    assert_batch_invariant(compiled, x, trials=1, control=product)
    with bi_compile.eager():
        outside = product(x)
    assert_same_bits(outside, compiled(x))


def test_the_number_of_rows_is_no_specialisation():
    w = data(256, 512, dtype=BF16, seed=1)
    config = configurations(BF16)[0]

    def compiled() -> int:
        found = (gpu_kernels.product, gpu_descriptor_kernels.product_by_descriptors)
        return sum(len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in found)

    gpu.product(data(5, 512, dtype=BF16), w.t(), config=config)
    before = compiled()
    for m in (1, 2, 15, 16, 17, 32, 4096):
        gpu.product(data(m, 512, dtype=BF16), w.t(), config=config)
    assert compiled() == before


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(RuntimeError, match="mm: expected all tensors on cuda:0, got one on cpu"):
        bi.mm(torch.ones(2, 2, device="cuda"), torch.ones(2, 2))


def test_tf32_is_never_used():
    a, b = (torch.randn(64, 64, device="cuda") for _ in range(2))
    expected = bi.mm(a, b)
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert_same_bits(bi.mm(a, b), expected, "allow_tf32")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert numerics.CONTRACTION_GPU_FP32_BLOCK == 32
