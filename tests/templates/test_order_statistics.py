"""topk is the start of a stable sort, for any k, layout, dtype and neighbours."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates.order_statistics import oracle, topk
from bi_compile.templates.order_statistics.contract import DTYPES
from tests.bits import assert_same_bits
from tests.templates.rows import LAYOUTS, data


def sample(*shape: int, dtype: torch.dtype, seed: int = 0, values: int = 100) -> torch.Tensor:
    """Many ties; zeros of both signs, infinities and NaN among floating values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-min(values, 100), values, shape, generator=generator)
    if not dtype.is_floating_point:
        return (x.abs() if dtype == torch.uint8 else x).to(dtype)
    specials = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    pick = specials[torch.randint(0, 5, shape, generator=generator)]
    return torch.where(torch.rand(shape, generator=generator) < 0.2, pick, x / 4).to(dtype)


def check(x: torch.Tensor, k: int, dim: int, largest: bool) -> None:
    for got, want in zip(topk(x, k, dim, largest), oracle.topk(x, k, dim, largest), strict=True):
        assert_same_bits(got, want, f"{k} of {tuple(x.shape)}, dim {dim}")


@given(
    dtype=st.sampled_from(DTYPES),
    outer=st.integers(1, 4),
    n=st.sampled_from((1, 2, 5, 31, 128, 129, 300, 700)),
    inner=st.sampled_from((1, 2, 5)),
    share=st.floats(0, 1),
    dim=st.integers(-3, 2),
    largest=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    values=st.sampled_from((1, 3, 100)),
    seed=st.integers(0, 2**31),
)
def test_kernels_are_the_oracle(dtype, outer, n, inner, share, dim, largest, layout, values, seed):
    if layout == "wider rows" or layout == "every second":
        dtype = dtype if dtype.is_floating_point else torch.float32
    x = LAYOUTS[layout](sample(outer, n, inner, dtype=dtype, seed=seed, values=values))
    check(x, round(share * x.shape[dim]), dim, largest)


def test_the_oracle_keeps_the_bits_of_a_nan():
    for seed in range(50):
        check(sample(1, 1, 5, dtype=torch.bfloat16, seed=seed, values=1), 1, 0, False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("largest", [True, False])
def test_long_rows_are_the_start_of_the_stable_sort(threads, largest):
    torch.set_num_threads(threads)
    for x in (data(3, 50_257, dtype=torch.bfloat16), torch.randn(2, 30_000), torch.arange(9000.0)[None]):
        values, indices = x.sort(dim=1, descending=largest, stable=True)
        for k in (1, 50, 4000):
            got = topk(x, k, 1, largest)
            assert_same_bits(got[0], values[:, :k].contiguous())
            assert torch.equal(got[1], indices[:, :k])


def test_stock_torch_breaks_ties_otherwise():
    x = torch.ones(4, 1000)
    assert topk(x, 5)[1].tolist() == [[0, 1, 2, 3, 4]] * 4
    assert x.topk(5)[1].tolist() != [[0, 1, 2, 3, 4]] * 4


def test_scalars_nothing_and_bad_calls_as_in_eager():
    value, index = topk(torch.tensor(2.0), 1)
    assert (value.item(), index.item(), value.shape) == (2.0, 0, ())
    assert topk(torch.empty(0, 5), 2)[0].shape == (0, 2)
    assert topk(torch.ones(3, 5), 0)[1].shape == (3, 0)
    for device in ("cpu", "meta"):
        x = torch.ones(2, 3, device=device)
        with pytest.raises(RuntimeError, match="selected index k out of range"):
            topk(x, 4)
        with pytest.raises(IndexError, match=r"expected to be in range of \[-2, 1\], but got 2"):
            topk(x, 1, 2)
    with pytest.raises(UnsupportedDtypeError, match=r"^topk does not support torch.bool"):
        topk(torch.ones(3, dtype=torch.bool), 1)
    torch.library.opcheck(torch.ops.bi_compile.topk.default, (torch.randn(4, 6).t(), 2, 0, True))
