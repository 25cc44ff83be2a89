"""Distances on a CUDA device: the bits of the CPU's oracle, from the two rows of each alone."""

import pytest
import torch

import bi_compile
from bi_compile.templates.distance import cdist, oracle
from tests.bits import assert_same_bits, same_bits
from tests.templates.rows import DTYPES, LAYOUTS, NEIGHBOURS, data

EXACT = (0.0, 1.0, 2.0, float("inf"))
ORDERS = (*EXACT, 3.0, 0.5)
SIZES = (1, 2, 3, 4, 7, 8, 16, 33)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", EXACT)
def test_the_bits_of_the_cpu(p, dtype):
    for batch, n in (((), 1), ((2,), 33), ((2, 3), 384), ((), 1025), ((), 4096)):
        a, b = data(*batch, 5, n, dtype=dtype, specials=True), data(*batch, 7, n, dtype=dtype, seed=1)
        assert_same_bits(cdist(a.cuda(), b.cuda(), p).cpu(), oracle.cdist(a, b, p), f"{batch} {n}")
    a, b = data(2, 70_000, dtype=dtype), data(3, 70_000, dtype=dtype, seed=1)
    assert_same_bits(cdist(a.cuda(), b.cuda(), p).cpu(), oracle.cdist(a, b, p), "long rows")


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_any_layout(layout):
    a, b = (LAYOUTS[layout](data(2, 3, 340, dtype=torch.float32, seed=seed)) for seed in (0, 1))
    on_device = [torch.empty_strided(x.shape, x.stride(), device="cuda").copy_(x) for x in (a, b)]
    assert_same_bits(cdist(*on_device, 2.0).cpu(), oracle.cdist(a, b, 2.0), layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", ORDERS)
def test_a_distance_depends_on_its_two_rows_alone(p, dtype):
    for n in (7, 300, 5000):
        a, b = data(3, n, dtype=dtype).cuda(), data(40, n, dtype=dtype, seed=1).cuda()
        alone = cdist(a, b[:2], p)
        for size in (*SIZES, 300):
            for value in NEIGHBOURS:
                batch = torch.cat([torch.full((size, n), value, dtype=dtype, device="cuda"), a])
                found = cdist(batch, b, p)[size:, :2].contiguous()
                assert_same_bits(found, alone, f"{n} {size} {value}")
        three = cdist(torch.stack([b, b.flip(0)])[:, :3], a.expand(2, 3, n), p)
        assert_same_bits(three[1], cdist(b.flip(0)[:3], a, p), "in a batch")


def test_stock_pytorch_fails_the_same_check():
    a = torch.randn(40, 30, device="cuda") + 100
    assert not same_bits(torch.cdist(a, a)[:5, :5].contiguous(), torch.cdist(a[:5], a[:5]))
    assert_same_bits(cdist(a, a)[:5, :5].contiguous(), cdist(a[:5], a[:5]))


@pytest.mark.parametrize("p", ORDERS)
def test_near_float64(p):
    a, b = torch.randn(7, 200), torch.randn(9, 200)
    exact = torch.cdist(a.double(), b.double(), p)
    torch.testing.assert_close(cdist(a.cuda(), b.cuda(), p).cpu().double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_with_gradients(dtype):
    torch.compiler.reset()
    anchors = torch.randn(6, 50, device="cuda", dtype=dtype)
    x = torch.randn(33, 4, 50, device="cuda", dtype=dtype)

    def distances(x):
        return torch.cdist(x, anchors.expand(len(x), 6, 50)), torch.cdist(
            x.flatten(1)[:, None], x.flatten(1)[:, None]
        )

    compiled = torch.compile(distances, backend="batch_invariant", dynamic=True)
    whole = compiled(x)
    for size in SIZES:
        for found, expected in zip(compiled(x[:size]), whole, strict=True):
            assert_same_bits(found, expected[:size], f"{size}")
    with bi_compile.eager():
        assert_same_bits(distances(x)[0], whole[0], "eager")
    alone, among = (t.clone().requires_grad_() for t in (x[3:4], x))
    for inputs in (alone, among):
        compiled(inputs)[0].square().sum((1, 2)).backward(torch.ones(len(inputs), device="cuda", dtype=dtype))
    assert_same_bits(alone.grad[0], among.grad[3], "gradient")
