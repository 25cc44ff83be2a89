"""layer_norm and rms_norm: the bits of their operations run one by one, for any batch, layout and threads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates import normalization, reduction
from bi_compile.templates.normalization import oracle
from tests.bits import assert_same_bits, same_bits
from tests.templates.rows import (
    DTYPES,
    LAYOUTS,
    LENGTHS,
    NEIGHBOURS,
    data,
    digest,
    digest_under,
    scrambled,
    vector,
)


def parameters(x: torch.Tensor, rank: int, dtype: torch.dtype | None = None):
    shape = x.shape[x.dim() - rank :]
    weight, bias = (1 + torch.randn(shape) / 4, torch.randn(shape))
    return weight.to(dtype or x.dtype), bias.to(dtype or x.dtype)


def check_oracle(x: torch.Tensor, rank: int, weight, bias) -> None:
    shape = x.shape[x.dim() - rank :]
    for real, by_hand in (
        (normalization.layer_norm(x, shape, weight, bias), oracle.layer_norm(x, shape, weight, bias)),
        (normalization.rms_norm(x, shape, weight), oracle.rms_norm(x, shape, weight)),
    ):
        for a, b in zip(real, by_hand, strict=True):
            assert_same_bits(a, oracle_rounded(b, a.dtype))


def oracle_rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.where(x.isnan(), torch.nan, x.to(dtype))


@given(
    dtype=st.sampled_from(DTYPES),
    outer=st.integers(1, 4),
    n=LENGTHS,
    inner=st.sampled_from((1, 2, 5)),
    rank=st.integers(1, 3),
    affine=st.sampled_from(("none", "weight", "both")),
    wide=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    specials=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_are_the_oracle_for_any_shape_and_layout(
    dtype, outer, n, inner, rank, affine, wide, layout, specials, seed
):
    x = LAYOUTS[layout](data(outer, inner, n, dtype=dtype, seed=seed, specials=specials))
    weight, bias = parameters(x, rank, torch.float32 if wide else dtype)
    check_oracle(x, rank, weight if affine != "none" else None, bias if affine == "both" else None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_length_of_interest_is_the_oracle(dtype):
    for n in (1, 2, 31, 33, 384, 1025, 40_000):
        x = data(3, n, dtype=dtype)
        check_oracle(x, 1, *parameters(x, 1))
        check_oracle(data(n, 3, dtype=dtype).t(), 1, *parameters(x, 1))


def test_fusion_is_not_observable_and_is_in_stock_torch():
    rsqrt = vector("rsqrt")
    for n in (5, 384, 1500):
        x = data(9, n, dtype=torch.float32)
        weight, bias = parameters(x, 1)
        mean = reduction.mean(x, (1,), True)
        d = x - mean
        rstd = rsqrt(reduction.mean(d * d, (1,), True) + 1e-5)
        by_hand = (d * rstd * weight + bias, mean, rstd)
        for a, b in zip(normalization.layer_norm(x, (n,), weight, bias), by_hand, strict=True):
            assert_same_bits(a, b)
        assert_same_bits(reduction.var(x, (1,), 0, True), reduction.mean(d * d, (1,), True))
        rstd = rsqrt(reduction.mean(x * x, (1,), True) + 1e-6)
        for a, b in zip(normalization.rms_norm(x, (n,), weight), (x * rstd * weight, rstd), strict=True):
            assert_same_bits(a, b)
    control = (x - x.mean(1, keepdim=True)) * (x.var(1, correction=0, keepdim=True) + 1e-5).rsqrt()
    assert not same_bits(torch.nn.functional.layer_norm(x, (1500,)), control)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_alone_and_among_any_neighbours(dtype):
    for n in (7, 384, 1500):
        rows = data(5, n, dtype=dtype)
        weight, bias = parameters(rows, 1)
        for op in (
            lambda x, n=n, w=weight, b=bias: normalization.layer_norm(x, (n,), w, b),
            lambda x, n=n, w=weight: normalization.rms_norm(x, (n,), w),
        ):
            alone = [torch.stack(results) for results in zip(*map(op, rows), strict=True)]
            for neighbour in NEIGHBOURS:
                batch = torch.full((33, n), neighbour, dtype=dtype)
                places = torch.randperm(33)[:5]
                batch[places] = rows
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    for x in (batch, batch.t().contiguous().t()):
                        for a, b in zip(op(x), alone, strict=True):
                            assert_same_bits(a[places], b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_near_float64_and_shaped_as_in_eager(dtype):
    x = (torch.randn(6, 4, 175, dtype=torch.float64) + 3).to(dtype)
    weight, bias = parameters(x, 2)
    eps = torch.finfo(dtype).eps
    for real, stock, reference in (
        (
            normalization.layer_norm(x, (4, 175), weight, bias),
            torch.native_layer_norm(x, (4, 175), weight, bias, 1e-5),
            torch.native_layer_norm(x.double(), (4, 175), weight.double(), bias.double(), 1e-5),
        ),
        (
            normalization.rms_norm(x, (4, 175), weight),
            torch.ops.aten._fused_rms_norm(x, (4, 175), weight, 1e-6),
            torch.ops.aten._fused_rms_norm(x.double(), (4, 175), weight.double(), 1e-6),
        ),
    ):
        for a, b, exact in zip(real, stock, reference, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert ((a.double() - exact).abs() / (1 + exact.abs())).max() <= 8 * eps


def test_statistics_are_float32_beside_wider_parameters_as_in_eager():
    x = torch.randn(3, 8).bfloat16()
    weight = torch.ones(8)
    for device in ("cpu", "meta"):
        y, mean, rstd = normalization.layer_norm(x.to(device), (8,), weight.to(device), None)
        assert (y.dtype, mean.dtype, rstd.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_special_rows_as_in_eager():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[1.0, nan, 2.0], [inf, 1.0, 0.0], [2.0, 2.0, 2.0], [0.0, -0.0, 0.0]])
    y, mean, rstd = normalization.layer_norm(x, (3,))
    stock_y, _, stock_rstd = torch.native_layer_norm(x, (3,), None, None, 1e-5)
    torch.testing.assert_close((y, rstd), (stock_y, stock_rstd), equal_nan=True)
    # Eager's running mean turns inf into NaN; this one is that of torch.mean.
    torch.testing.assert_close(mean, x.mean(1, keepdim=True), equal_nan=True)
    torch.testing.assert_close(
        normalization.rms_norm(x, (3,)), torch.ops.aten._fused_rms_norm(x, (3,), None, 1e-6), equal_nan=True
    )
    assert_same_bits(normalization.layer_norm(x, (3,))[0][0], torch.full((3,), nan))


def test_empty_inputs_as_in_eager():
    for shape in ((0, 3), (2, 0)):
        x = torch.empty(shape)
        stock = torch.native_layer_norm(x, shape[1:], None, None, 1e-5)
        torch.testing.assert_close(normalization.layer_norm(x, shape[1:]), stock, equal_nan=True)
        stock = torch.ops.aten._fused_rms_norm(x, shape[1:], None, 1e-6)
        torch.testing.assert_close(normalization.rms_norm(x, shape[1:]), stock, equal_nan=True)


def test_bad_input_is_refused():
    for device in ("cpu", "meta"):
        x = torch.randn(2, 3, device=device)
        with pytest.raises(RuntimeError, match="normalized_shape"):
            normalization.layer_norm(x, (4,))
        with pytest.raises(RuntimeError, match="weight must have that shape"):
            normalization.layer_norm(x, (3,), torch.ones(1, device=device))
        with pytest.raises(
            UnsupportedDtypeError, match=r"^layer_norm of torch.float32 with bias does not support"
        ):
            normalization.layer_norm(x, (3,), None, torch.ones(3, device=device).double())
        with pytest.raises(UnsupportedDtypeError, match=r"^rms_norm does not support torch.complex64"):
            normalization.rms_norm(x.to(torch.complex64), (3,))
    with pytest.raises(RuntimeError, match="rms_norm does not support"):
        torch.ops.bi_compile.rms_norm(torch.zeros(3, dtype=torch.int64), [3], None, 1e-5)


def test_fake_tensors_agree_and_symbolic_sizes_stay_symbolic():
    x = torch.randn(4, 3, 6)
    weight, bias = parameters(x, 1)
    torch.library.opcheck(torch.ops.bi_compile.layer_norm.default, (x, [6], weight, bias, 1e-5))
    torch.library.opcheck(torch.ops.bi_compile.rms_norm.default, (x.bfloat16(), [3, 6], None, 1e-5))


_EXACT = (
    "[y for dtype in (torch.float32, torch.bfloat16, torch.float64) for n in (45, 3001)"
    " for x in [scrambled(7, n, dtype=dtype)] for w in [scrambled(n, dtype=dtype)]"
    " for y in (*normalization.layer_norm(x, (n,), w, w), *normalization.rms_norm(x, (n,), w))]"
)
_GOLDEN = "c491c847855fcdcf"


def test_golden_bits():
    results = eval(_EXACT, {"scrambled": scrambled, "torch": torch, "normalization": normalization})
    assert digest(*results) == _GOLDEN


# AVX-512, where it is there, is what the test above runs. Contractions, attention and convolutions build
# their portable kernels every time.
@pytest.mark.parametrize("isa", ["avx2", pytest.param("portable", marks=pytest.mark.thorough)])
def test_bits_do_not_depend_on_the_instruction_set(isa):
    assert digest_under(isa, _EXACT) == _GOLDEN
