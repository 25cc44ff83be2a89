"""Row reductions: the kernels are the oracle bit for bit, whatever the batch, the layout and the threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates import reduction
from bi_compile.templates.reduction import oracle
from tests.bits import assert_same_bits, same_bits
from tests.templates.rows import (
    DTYPES,
    EXACT,
    LAYOUTS,
    LENGTHS,
    NEIGHBOURS,
    data,
    digest,
    digest_under,
    scrambled,
    vector,
    vector_pow,
)

exp, log = vector("exp"), vector("log")

# name -> (the op, its oracle on rows); both take what else the op takes by keyword.
OPS = {
    **{name: (getattr(reduction, name), getattr(oracle, name)) for name in EXACT},
    "var": (reduction.var, oracle.var),
    "var, correction 0": (
        lambda x, **k: reduction.var(x, correction=0, **k),
        lambda rows: oracle.var(rows, 0.0),
    ),
    "var of var_mean": (lambda x, **k: reduction.var_mean(x, **k)[0], oracle.var),
    "mean of var_mean": (lambda x, **k: reduction.var_mean(x, **k)[1], oracle.mean),
    "logsumexp": (reduction.logsumexp, lambda rows: oracle.logsumexp(rows, exp, log)),
    **{
        f"norm {p}": (
            lambda x, p=p, **k: reduction.norm(x, p, **k),
            lambda rows, p=p: oracle.norm(rows, p, vector_pow),
        )
        for p in (0.0, 1.0, 2.0, 3.0, -1.5, float("inf"), -float("inf"))
    },
}
# Ops that round and whose control in stock torch depends on the layout.
ROUNDING = ("sum", "mean", "prod", "norm 2.0", "logsumexp")


def sample(name: str, *shape: int, dtype: torch.dtype, seed: int = 0, specials: bool = False) -> torch.Tensor:
    x = data(*shape, dtype=dtype, seed=seed, specials=specials)
    if name == "prod":
        return (1 + x.sign() * (x.abs() % 0.4)).to(dtype)
    return x / 64 if name == "logsumexp" else x


def expected(name: str, x: torch.Tensor, dims=()) -> torch.Tensor:
    result = OPS[name][1](oracle.as_rows(x, dims))
    return result if result.dtype == torch.int64 else oracle.rounded(result, x.dtype)


def check_oracle(name: str, x: torch.Tensor, dims=()) -> None:
    assert_same_bits(OPS[name][0](x, dims=dims), expected(name, x, dims), f"{name} over {dims}")


@given(
    name=st.sampled_from(sorted(OPS)),
    dtype=st.sampled_from(DTYPES),
    outer=st.integers(1, 4),
    n=LENGTHS,
    inner=st.sampled_from((1, 2, 5, 16, 33, 129, 260)),
    dims=st.sampled_from(((), (0,), (1,), (2,), (0, 1), (1, 2), (-1, 0), (-2,))),
    layout=st.sampled_from(sorted(LAYOUTS)),
    specials=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_are_the_oracle_for_any_shape_layout_and_dims(
    name, dtype, outer, n, inner, dims, layout, specials, seed
):
    n, inner = (n, inner) if n < 300 else (n, min(inner, 5))
    check_oracle(
        name, LAYOUTS[layout](sample(name, outer, n, inner, dtype=dtype, seed=seed, specials=specials)), dims
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(OPS))
def test_each_op_in_each_dtype_is_the_oracle(name, dtype):
    for n in (1, 2, 31, 33, 384, 1025, 5000):
        check_oracle(name, sample(name, 3, n, dtype=dtype), (1,))
        check_oracle(name, sample(name, n, 37, dtype=dtype), (0,))


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "amax", "argmax", "var", "logsumexp"])
def test_long_rows_are_the_oracle_with_any_threads(name):
    for x, dims in (
        (sample(name, 200_001, dtype=torch.float32), ()),
        (sample(name, 3, 70_000, dtype=torch.bfloat16).t(), ()),
        (sample(name, 2, 70_001, dtype=torch.float32), (1,)),
        (sample(name, 9000, 40, dtype=torch.float32), (0,)),
    ):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            check_oracle(name, x, dims)


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_alone_and_among_any_neighbours(name, dtype):
    op = OPS[name][0]
    for n in (7, 384, 1500):
        rows = sample(name, 5, n, dtype=dtype)
        for neighbour in NEIGHBOURS:
            batch = torch.full((33, n), neighbour, dtype=dtype)
            places = torch.randperm(33)[:5]
            batch[places] = rows
            for threads in (1, 2):
                torch.set_num_threads(threads)
                together = op(batch, dims=(1,))[places]
                assert_same_bits(together, torch.stack([op(row) for row in rows]), name)
                # The same rows as columns: the batch is the contiguous dim.
                assert_same_bits(op(batch.t().contiguous(), dims=(0,))[places], together, f"{name}, columns")


@pytest.mark.parametrize("name", ROUNDING)
def test_layout_does_not_show_and_does_in_stock_torch(name):
    stock = {
        "norm 2.0": lambda x, dims: torch.linalg.vector_norm(x, 2, dims),
        "prod": lambda x, dims: torch.prod(x, dims[0]),
    }.get(name, lambda x, dims: getattr(torch, name)(x, dims))
    x = sample(name, 40, 1500, dtype=torch.float32) + 0.01
    ours = [OPS[name][0](x, dims=(1,)), OPS[name][0](x.t().contiguous(), dims=(0,))]
    assert_same_bits(*ours, name)
    control = [stock(x, (1,)), stock(x.t().contiguous(), (0,))]
    assert not same_bits(*control), "the data shows no change of order"


@given(n=LENGTHS, zeros=st.integers(0, 2500), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31))
def test_appended_identities_change_nothing(n, zeros, dtype, seed):
    for name, identity in (("sum", 0.0), ("prod", 1.0), ("norm 2.0", 0.0), ("norm 1.0", 0.0)):
        x = sample(name, 2, n, dtype=dtype, seed=seed)
        padded = torch.nn.functional.pad(x, (0, zeros), value=identity)
        assert_same_bits(OPS[name][0](padded, dims=(1,)), OPS[name][0](x, dims=(1,)), name)
        assert_same_bits(OPS[name][0](padded.t().contiguous(), dims=(0,)), OPS[name][0](x, dims=(1,)), name)


def test_stock_sum_feels_appended_zeros():
    x = data(8, 383, dtype=torch.float32) / 8 + 0.01
    assert not same_bits(torch.nn.functional.pad(x, (0, 100)).sum(1), x.sum(1))
    assert_same_bits(reduction.sum(torch.nn.functional.pad(x, (0, 100)), (1,)), reduction.sum(x, (1,)))


@pytest.mark.parametrize("name", sorted(OPS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_float64(name, dtype):
    x = torch.randn(6, 700, dtype=torch.float64).to(dtype)
    x = (1 + x / 50).to(dtype) if name == "prod" else x
    result, reference = OPS[name][0](x, dims=(1,)), OPS[name][1](x.double())
    if result.dtype == torch.int64:
        assert torch.equal(result, reference)
        return
    relative = (result.double() - reference).abs() / x.double().abs().sum(1).clamp_min(reference.abs())
    assert relative.max() <= 4 * torch.finfo(dtype).eps


def test_special_values_as_in_eager():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor(
        [[1.0, nan, 2.0], [inf, 1.0, -inf], [-inf, -inf, -inf], [inf, inf, 0.0], [-0.0, 0.0, -0.0]]
    )
    for name in ("sum", "mean", "prod", "amax", "amin", "argmax", "argmin", "var", "logsumexp"):
        stock = getattr(torch, name)(x, 1)
        torch.testing.assert_close(OPS[name][0](x, dims=(1,)), stock, equal_nan=True)
    assert_same_bits(reduction.amax(x, dims=(1,))[4], torch.tensor(0.0), "amax of both zeros")
    assert_same_bits(reduction.amin(x, dims=(1,))[4], torch.tensor(-0.0), "amin of both zeros")


def test_nan_results_are_one_nan():
    quiet = torch.tensor(float("nan"))
    negative = torch.tensor([0x7FC00001 - 2**31], dtype=torch.int32).view(torch.float32)
    for x in (torch.tensor([float("inf"), -float("inf")]), torch.cat([negative, torch.ones(40)])):
        for op in (reduction.sum, reduction.mean, reduction.var, reduction.logsumexp, reduction.norm):
            result = op(x)
            assert not result.isnan() or same_bits(result, quiet)
    assert same_bits(reduction.amax(torch.cat([negative, torch.ones(40)])), quiet)


def test_scalars_keepdim_and_expanded_inputs():
    x = torch.tensor(-3.0)
    results = [reduction.sum(x), reduction.argmax(x), reduction.amax(x, dims=(-1,)), reduction.norm(x)]
    assert results == [-3, 0, -3, 3]
    assert reduction.var(x).isnan()
    y = data(3, 4, 5, dtype=torch.float32)
    assert reduction.sum(y, dims=(0, 2), keepdim=True).shape == (1, 4, 1)
    assert reduction.argmax(y, dims=(0, 2)).shape == (4,)
    wide = torch.tensor([[0.1], [0.7]]).expand(2, 100)
    check_oracle("sum", wide, (1,))
    check_oracle("sum", wide, (0,))


def test_empty_inputs_as_in_eager():
    for shape, dims in (
        ((0, 3), (0,)),
        ((3, 0), (1,)),
        ((0,), (0,)),
        ((2, 0, 3), (1,)),
        ((0, 3), (1,)),
        ((0,), ()),
    ):
        x = torch.empty(shape)
        for name in ("sum", "mean", "logsumexp"):
            stock_dims = dims or tuple(range(x.dim()))
            stock = getattr(torch, name)(x, stock_dims)
            torch.testing.assert_close(OPS[name][0](x, dims=dims), stock, rtol=0, atol=0, equal_nan=True)
        assert reduction.var(x, dims).isnan().all()
        assert (reduction.norm(x, 2, dims) == 0).all()
        assert (reduction.prod(x, dims) == 1).all()
    assert reduction.amax(torch.empty(0, 3), dims=(1,)).shape == (0,)
    assert reduction.argmin(torch.empty(0, 3), dims=(1,)).shape == (0,)


@pytest.mark.parametrize("name", ["amax", "amin", "argmax", "argmin", "norm inf", "norm -1.5"])
def test_extrema_of_nothing_raise_as_in_eager(name):
    message = rf"{name.split()[0]}\(\): Expected reduction dim 0 to have non-zero size"
    with pytest.raises(IndexError, match=message):
        OPS[name][0](torch.empty(0, 3), dims=(0,))
    with pytest.raises(IndexError, match=message):
        OPS[name][0](torch.empty(0, 3, device="meta"), dims=(0,))
    with pytest.raises((IndexError, RuntimeError), match="Expected reduction dim to be specified"):
        OPS[name][0](torch.empty(0, 3))


def test_bad_dims_raise_as_in_eager():
    x = torch.randn(2, 3)
    for y in (x, x.to("meta")):
        with pytest.raises(IndexError, match=r"expected to be in range of \[-2, 1\], but got 2"):
            reduction.sum(y, dims=(2,))
        with pytest.raises(RuntimeError, match="dim 1 appears multiple times"):
            reduction.sum(y, dims=(1, -1))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_other_dtypes_are_refused_by_name(dtype):
    x = torch.zeros(3, dtype=dtype)
    with pytest.raises(UnsupportedDtypeError, match=rf"^sum does not support {dtype}"):
        reduction.sum(x)
    with pytest.raises(RuntimeError, match="sum does not support"):
        torch.ops.bi_compile.sum(x, [], False)


@pytest.mark.parametrize("name", sorted(OPS))
def test_fake_tensors_agree_with_real_ones(name):
    for dims, keepdim in (((), False), ((0, -1), True), ((1,), False)):
        x = torch.randn(2, 3, 4, dtype=torch.bfloat16)
        real, fake = (OPS[name][0](y, dims=dims, keepdim=keepdim) for y in (x, x.to("meta")))
        assert (real.shape, real.dtype, real.stride()) == (fake.shape, fake.dtype, fake.stride())


def test_symbolic_sizes_stay_symbolic():
    args = (torch.randn(4, 6), [1], False)
    torch.library.opcheck(torch.ops.bi_compile.sum.default, args)
    torch.library.opcheck(torch.ops.bi_compile.amax.default, args)
    torch.library.opcheck(torch.ops.bi_compile.var_mean.default, (torch.randn(4, 6), [0], 1.0, True))


# Not logsumexp and the norms of other orders: exp, log and pow belong to the instruction set.
_EXACT = (
    "[f(scrambled(*shape, dtype=dtype), dims=dims)"
    " for shape, dims in [((3, 5000), (1,)), ((1100, 45), (0,)), ((4, 33, 7), (0, 2)), ((2, 70001), (1,))]"
    " for dtype in (torch.float32, torch.bfloat16, torch.float64)"
    " for f in (reduction.sum, reduction.mean, reduction.prod, reduction.var, reduction.amax,"
    " reduction.argmin, reduction.norm)]"
)
_GOLDEN = "5de614614042f0ae"


def test_golden_bits():
    results = eval(_EXACT, {"scrambled": scrambled, "torch": torch, "reduction": reduction})
    assert digest(*results) == _GOLDEN


# AVX-512, where it is there, is what the test above runs. Contractions, attention and convolutions build
# their portable kernels every time.
@pytest.mark.parametrize("isa", ["avx2", pytest.param("portable", marks=pytest.mark.thorough)])
def test_bits_do_not_depend_on_the_instruction_set(isa):
    assert digest_under(isa, _EXACT) == _GOLDEN
