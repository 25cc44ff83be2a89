"""softmax and log_softmax: the bits of their operations run one by one, for any batch, layout and threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates import reduction, softmax
from bi_compile.templates.softmax import oracle
from tests.bits import assert_same_bits, same_bits
from tests.templates.rows import DTYPES, LAYOUTS, LENGTHS, NEIGHBOURS, data, digest, scrambled, vector

exp, log = vector("exp"), vector("log")

OPS = {
    "softmax": (softmax.softmax, lambda x, dim: oracle.softmax(x, dim, exp), torch.softmax),
    "log_softmax": (
        softmax.log_softmax,
        lambda x, dim: oracle.log_softmax(x, dim, exp, log),
        torch.log_softmax,
    ),
}
NAMES = pytest.mark.parametrize("name", sorted(OPS))


def scores(*shape: int, dtype: torch.dtype, seed: int = 0, specials: bool = False) -> torch.Tensor:
    x = data(*shape, dtype=dtype, seed=seed, specials=specials)
    return (x.double() / 256).to(dtype)


def check_oracle(name: str, x: torch.Tensor, dim: int) -> None:
    op, by_hand, _ = OPS[name]
    assert_same_bits(op(x, dim), by_hand(x, dim), f"{name} over {dim}")


@given(
    name=st.sampled_from(sorted(OPS)),
    dtype=st.sampled_from(DTYPES),
    outer=st.integers(1, 4),
    n=LENGTHS,
    inner=st.sampled_from((1, 2, 5, 16, 33, 129, 260)),
    dim=st.integers(-3, 2),
    layout=st.sampled_from(sorted(LAYOUTS)),
    specials=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_are_the_oracle_for_any_shape_layout_and_dim(
    name, dtype, outer, n, inner, dim, layout, specials, seed
):
    inner = inner if n < 300 else min(inner, 5)
    check_oracle(
        name, LAYOUTS[layout](scores(outer, n, inner, dtype=dtype, seed=seed, specials=specials)), dim
    )


@NAMES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_length_of_interest_is_the_oracle(name, dtype):
    for n in (1, 2, 31, 33, 384, 1025, 40_000):
        check_oracle(name, scores(3, n, dtype=dtype), 1)
        check_oracle(name, scores(n, 3, dtype=dtype), 0)


@NAMES
def test_fusion_is_not_observable(name):
    for n in (5, 384, 1500):
        x = scores(9, n, dtype=torch.float32)
        shifted = x - reduction.amax(x, (1,), True)
        total = reduction.sum(exp(shifted), (1,), True)
        by_hand = exp(shifted) / total if name == "softmax" else shifted - log(total)
        assert_same_bits(OPS[name][0](x, 1), by_hand, name)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_alone_and_among_any_neighbours(name, dtype):
    op = OPS[name][0]
    for n in (7, 384, 1500):
        rows = scores(5, n, dtype=dtype)
        for neighbour in NEIGHBOURS:
            batch = torch.full((33, n), neighbour, dtype=dtype)
            places = torch.randperm(33)[:5]
            batch[places] = rows
            for threads in (1, 2):
                torch.set_num_threads(threads)
                together = op(batch, 1)[places]
                assert_same_bits(together, torch.stack([op(row, 0) for row in rows]), name)
                assert_same_bits(op(batch.t().contiguous(), 0).t()[places], together, f"{name}, columns")


@NAMES
def test_layout_does_not_show_and_does_in_stock_torch(name):
    op, _, stock = OPS[name]
    x = scores(40, 1500, dtype=torch.float32)
    assert_same_bits(op(x.t().contiguous(), 0).t(), op(x, 1), name)
    assert not same_bits(stock(x.t().contiguous(), 0).t(), stock(x, 1)), "the data shows no change of order"


@given(n=LENGTHS, masked=st.integers(0, 2500), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31))
def test_masked_elements_at_the_end_change_nothing(n, masked, dtype, seed):
    x = scores(2, n, dtype=dtype, seed=seed)
    padded = torch.nn.functional.pad(x, (0, masked), value=-float("inf"))
    for name, (op, _, _) in OPS.items():
        assert_same_bits(op(padded, 1)[:, :n], op(x, 1), name)


@NAMES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_float64(name, dtype):
    x = (3 * torch.randn(6, 700, dtype=torch.float64)).to(dtype)
    op, _, stock = OPS[name]
    reference = stock(x.double(), 1)
    limits = torch.finfo(dtype)
    # The argument of exp reaches about 20 and loses half an ulp; in fp16 small results underflow.
    allowed = 16 * limits.eps * reference.abs() + limits.eps * limits.smallest_normal
    assert ((op(x, 1).double() - reference).abs() <= allowed).all()


@NAMES
def test_special_rows_as_in_eager(name):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor(
        [[1.0, nan, 2.0], [inf, 1.0, 0.0], [-inf, -inf, -inf], [-inf, 2.0, -inf], [-0.0, 0.0, -0.0]]
    )
    op, _, stock = OPS[name]
    torch.testing.assert_close(op(x, 1), stock(x, 1), equal_nan=True)
    torch.testing.assert_close(op(x.t().contiguous(), 0).t(), stock(x, 1), equal_nan=True)
    assert_same_bits(op(x, 1)[:3], torch.where(stock(x, 1).isnan(), nan, stock(x, 1))[:3])


@NAMES
def test_scalars_and_empty_inputs_as_in_eager(name):
    op, _, stock = OPS[name]
    for x in (torch.tensor(2.0), torch.empty(0, 3), torch.empty(3, 0), torch.empty(2, 0, 3), torch.empty(0)):
        for dim in range(-max(x.dim(), 1), max(x.dim(), 1)):
            assert_same_bits(op(x, dim), stock(x, dim))


@NAMES
def test_bad_input_is_refused(name):
    op = OPS[name][0]
    for x in (torch.randn(2, 3), torch.randn(2, 3, device="meta")):
        with pytest.raises(IndexError, match=r"expected to be in range of \[-2, 1\], but got 2"):
            op(x, 2)
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(UnsupportedDtypeError, match=rf"^{name} does not support {dtype}"):
            op(torch.zeros(3, dtype=dtype), 0)
        with pytest.raises(RuntimeError, match=f"{name} does not support"):
            getattr(torch.ops.bi_compile, name)(torch.zeros(3, dtype=dtype), 0)


@NAMES
def test_fake_tensors_agree_and_symbolic_sizes_stay_symbolic(name):
    x = torch.randn(4, 6, 5, dtype=torch.bfloat16).transpose(0, 2)
    real, fake = (OPS[name][0](y, 1) for y in (x, x.to("meta")))
    assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())
    torch.library.opcheck(getattr(torch.ops.bi_compile, name).default, (torch.randn(4, 6), 1))


def test_golden_bits():
    """exp and log are the instruction set's own; AVX-512 and AVX2 agree, the portable build has another."""
    from bi_compile.inductor import best_isa

    if best_isa() == "portable":
        pytest.skip("golden bits are those of the vector instruction sets")
    x = scrambled(7, 3001)
    assert digest(softmax.softmax(x), softmax.log_softmax(x, 0), reduction.logsumexp(x)) == "ba7f081e3c52dc9b"
