"""Pointwise functions: an element's bits depend on its own value, not on its place or its neighbours."""

import pytest
import torch

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.pointwise import binary, unary
from bi_compile.templates.pointwise.functions import expressions
from tests.bits import same_bits

NAMES = sorted(expressions())
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HOSTILE = [0.0, 1e-40, 1e30, float("inf"), float("nan"), -3e4, 1e5, 50.0, 5e4, -1.0, 130.0, 9.99, 10.0]


def values(dtype: torch.dtype, n: int = 400) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    normal = torch.randn(4, n, generator=g, dtype=torch.float64)
    wide = normal[2] * torch.exp(torch.randn(n, generator=g, dtype=torch.float64) * 20)
    return torch.cat([normal[0], normal[1] * 100, wide, normal[3].tanh(), torch.tensor(HOSTILE)]).to(dtype)


def call(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return unary(x, name) if expressions()[name][0] == 1 else binary(x, y, name)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and same_bits(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_neither_place_nor_neighbours_show(name, dtype):
    x = values(dtype)
    y = x.flip(0)
    width = 16
    # Alone: every lane of its vector holds the same value.
    alone = call(name, x.repeat_interleave(width), y.repeat_interleave(width))[::width]
    g = torch.Generator().manual_seed(2)
    for lane in (0, 5, 15):
        crowd_x, crowd_y = (
            torch.tensor(HOSTILE)[torch.randint(len(HOSTILE), (len(x), width), generator=g)].to(dtype)
            for _ in "xy"
        )
        crowd_x[:, lane], crowd_y[:, lane] = x, y
        assert same(call(name, crowd_x.flatten(), crowd_y.flatten()).view(-1, width)[:, lane], alone)
    for tail in (1, 3, 17):
        assert same(call(name, x[:tail], y[:tail]), alone[:tail])


def test_control_stock_compiled_sine_sees_its_neighbours():
    compiled = torch.compile(torch.sin)
    x = torch.randn(4096)
    beside_large = torch.stack([x, torch.full_like(x, 1e5)], 1)
    assert not same_bits(compiled(beside_large)[:, 0], compiled(torch.stack([x, x], 1))[:, 0])


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_strides_do_not_show(threads):
    torch.set_num_threads(threads)
    x = torch.randn(70, 501)
    whole = unary(x, "exp")
    assert same_bits(unary(x.t(), "exp"), whole.t().contiguous())
    assert same_bits(unary(x[::3, 7::2], "exp"), whole[::3, 7::2].contiguous())
    assert same_bits(unary(x[:0], "exp"), whole[:0])


def test_broadcasting():
    x, y = torch.rand(3, 1, 5), torch.rand(4, 1)
    assert same_bits(
        binary(x, y, "pow"), binary(*(t.contiguous() for t in torch.broadcast_tensors(x, y)), "pow")
    )


def test_other_dtypes_and_names_are_refused():
    with pytest.raises(UnsupportedDtypeError, match=r"exp does not support torch\.complex64"):
        unary(torch.empty(3, dtype=torch.complex64, device="meta"), "exp")
    with pytest.raises(RuntimeError, match="exp does not support"):
        unary(torch.ones(3, dtype=torch.int32), "exp")
    with pytest.raises(RuntimeError, match="unknown pointwise function nope"):
        unary(torch.ones(3), "nope")
