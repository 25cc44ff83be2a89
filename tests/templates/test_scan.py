"""Scans: the kernels are the chains in index order bit for bit, for any batch, layout and threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates import scan
from bi_compile.templates.scan import oracle
from tests.bits import assert_same_bits, same_bits
from tests.templates.rows import DTYPES, LAYOUTS, NEIGHBOURS, data, digest, sample, scrambled, vector

exp, log1p = vector("exp"), vector("log1p")

# name -> (the op, its oracle, stock).
OPS = {
    "cumsum": (scan.cumsum, oracle.cumsum, torch.cumsum),
    "cumprod": (scan.cumprod, oracle.cumprod, torch.cumprod),
    "logcumsumexp": (
        scan.logcumsumexp,
        lambda x, dim: oracle.logcumsumexp(x, dim, exp, log1p),
        torch.logcumsumexp,
    ),
}
NAMES = pytest.mark.parametrize("name", sorted(OPS))


def check_oracle(name: str, x: torch.Tensor, dim: int) -> None:
    op, by_hand, _ = OPS[name]
    assert_same_bits(op(x, dim), by_hand(x, dim), f"{name} over {dim}")


@given(
    name=st.sampled_from(sorted(OPS)),
    dtype=st.sampled_from(DTYPES),
    outer=st.integers(1, 4),
    n=st.integers(1, 70),
    inner=st.sampled_from((1, 2, 5, 16, 33, 70)),
    dim=st.integers(-3, 2),
    layout=st.sampled_from(sorted(LAYOUTS)),
    specials=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_are_the_oracle_for_any_shape_layout_and_dim(
    name, dtype, outer, n, inner, dim, layout, specials, seed
):
    x = LAYOUTS[layout](sample(name, outer, n, inner, dtype=dtype, seed=seed, specials=specials))
    check_oracle(name, x, dim)


@NAMES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_line_is_the_same_alone_and_among_any_neighbours(name, dtype):
    op = OPS[name][0]
    rows = sample(name, 5, 400, dtype=dtype)
    alone = torch.stack([op(row) for row in rows])
    for neighbour in NEIGHBOURS:
        batch = torch.full((33, 400), neighbour, dtype=dtype)
        places = torch.randperm(33)[:5]
        batch[places] = rows
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_same_bits(op(batch, 1)[places], alone, name)
            assert_same_bits(op(batch.t().contiguous(), 0).t()[places], alone, f"{name}, columns")


@NAMES
def test_what_follows_changes_nothing(name):
    x = sample(name, 3, 300, dtype=torch.float32)
    assert_same_bits(OPS[name][0](x)[:, :120].contiguous(), OPS[name][0](x[:, :120]), name)


def test_a_sum_goes_on_from_its_last_element():
    x = data(3, 300, dtype=torch.float32)
    whole, head = scan.cumsum(x), scan.cumsum(x[:, :100])
    rest = scan.cumsum(torch.cat([head[:, -1:], x[:, 100:]], 1))[:, 1:]
    assert_same_bits(torch.cat([head, rest], 1), whole)


@NAMES
def test_the_data_shows_a_change_of_order(name):
    x = sample(name, 4, 900, dtype=torch.float32)
    back = OPS[name][0](x.flip(1))
    assert not same_bits(back[:, -1], OPS[name][0](x)[:, -1])


@NAMES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_float64(name, dtype):
    x = torch.randn(6, 500, dtype=torch.float64).to(dtype)
    x = (1 + x / 50).to(dtype) if name == "cumprod" else x
    op, _, stock = OPS[name]
    reference = stock(x.double(), 1)
    scale = x.double().abs().cumsum(1).clamp_min(reference.abs())
    tolerance = (
        torch.finfo(dtype).eps + 500 * torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps
    )
    assert ((op(x).double() - reference).abs() / scale).max() <= tolerance


@NAMES
def test_special_values_shapes_and_dims_as_in_eager(name):
    op, _, stock = OPS[name]
    inf, nan = float("inf"), float("nan")
    x = torch.tensor(
        [[1.0, nan, 2.0], [inf, 1.0, -inf], [-inf, -inf, 3.0], [inf, inf, 0.0], [-0.0, 0.0, -0.0]]
    )
    torch.testing.assert_close(op(x), stock(x, 1), equal_nan=True)
    assert_same_bits(op(x[4]), stock(x[4], 0), "zeros")
    for shape, dim in (((), 0), ((), -1), ((0,), 0), ((2, 0, 3), 1), ((2, 0, 3), 0), ((1, 4, 1), 2)):
        y = torch.full(shape, 0.5)
        torch.testing.assert_close(op(y, dim), stock(y, dim))
    for y in (x, x.to("meta")):
        with pytest.raises(IndexError, match=r"expected to be in range of \[-2, 1\], but got 2"):
            op(y, 2)


@NAMES
def test_other_dtypes_are_refused_and_fakes_agree(name):
    with pytest.raises(UnsupportedDtypeError, match=rf"^{name} does not support torch.int64"):
        OPS[name][0](torch.zeros(3, dtype=torch.int64))
    torch.library.opcheck(getattr(torch.ops.bi_compile, name).default, (torch.rand(4, 6).t(), 1))


def test_golden_bits():
    shapes = (((3, 700), 1), ((300, 45), 0), ((4, 33, 7), 1))
    results = [
        f(scrambled(*shape, dtype=dtype), dim)
        for shape, dim in shapes
        for dtype in (torch.float32, torch.bfloat16, torch.float64)
        for f in (scan.cumsum, scan.cumprod)
    ]
    assert digest(*results) == "4268fc2a97fdc490"
