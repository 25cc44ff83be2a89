"""Contractions: one order of summation for every shape, layout, thread count and instruction set."""

import ctypes
import ctypes.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bi_compile import numerics
from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates import contraction
from bi_compile.templates.contraction import oracle
from tests.bits import assert_same_bits, order_sensitive, same_bits
from tests.templates import contraction_digest

bi = torch.ops.bi_compile
DTYPES = contraction_digest.DTYPES
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31)

GOLDEN = {
    torch.float32: "26173039d91dc89a",
    torch.float64: "ba922462022dcbec",
    torch.float16: "28f994ed7266a16e",
}
GOLDEN_BF16 = {"tiles": "210790d4c2b39f5d", "pairs": "20fd4d21f67b88ed"}
"""Bits that users rely on: a change here needs a CHANGELOG entry."""


def data(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return order_sensitive(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# The tree


@given(dtypes, st.integers(1, 20), st.integers(0, 700), st.integers(1, 40), seeds)
def test_equals_the_oracle(dtype, m, k, n, seed):
    a, b, c = data(m, k, dtype=dtype, seed=seed), data(k, n, dtype=dtype, seed=seed + 1), data(n, dtype=dtype)
    assert_same_bits(bi.mm(a, b), oracle.mm(a, b), "mm")
    assert_same_bits(bi.addmm(c, a, b), oracle.addmm(c, a, b), "addmm")
    w = b.t().contiguous()
    assert_same_bits(bi.linear(a, w, c), oracle.linear(a, w, c), "linear")
    assert_same_bits(bi.linear(a, w, None), oracle.mm(a, b), "linear without bias")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 2, 8, 9, 30, 70])
def test_wide_products_equal_the_oracle(dtype, m):
    a, b = data(m, 600, dtype=dtype), data(600, 300, dtype=dtype, seed=1)
    expected = oracle.mm(a, b)
    for columns in (b, b.t().contiguous().t()):
        assert_same_bits(bi.mm(a, columns), expected, f"{columns.stride()}")
        assert_same_bits(bi.mm(columns.t(), a.t()), expected.t(), f"{columns.stride()} transposed")


@given(dtypes, st.integers(1, 4), st.sampled_from([0, 1, -0.7]), st.sampled_from([1, 0.3, 0]), seeds)
def test_alpha_and_beta_equal_the_oracle(dtype, batch, beta, alpha, seed):
    a, b = data(batch, 5, 300, dtype=dtype, seed=seed), data(batch, 300, 9, dtype=dtype, seed=seed + 1)
    for shape in ((9,), (5, 1), (batch, 1, 9), (batch, 5, 9), ()):
        c = data(*shape, dtype=dtype)
        expected = oracle.baddbmm(c, a, b, beta=beta, alpha=alpha)
        assert_same_bits(bi.baddbmm(c, a, b, beta=beta, alpha=alpha), expected, f"baddbmm {shape}")


@given(dtypes, seeds)
def test_subnormal_numbers_equal_the_oracle(dtype, seed):
    scale = {torch.float16: 2.0**-14, torch.float64: 2.0**-500}.get(dtype, 2.0**-66)
    a, b = data(3, 301, dtype=dtype, seed=seed) * scale, data(301, 20, dtype=dtype, seed=seed + 1) * scale
    assert_same_bits(bi.mm(a, b), oracle.mm(a, b), "mm")


@pytest.mark.parametrize("single", [True, False])
def test_the_oracle_rounds_fused_multiply_adds_once(single):
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    function, kind = (library.fmaf, ctypes.c_float) if single else (library.fma, ctypes.c_double)
    function.restype, function.argtypes = kind, [kind] * 3
    dtype = torch.float32 if single else torch.float64
    x, y, z = (torch.randn(4000, dtype=dtype) * 2.0 ** torch.randint(-40, 40, (4000,)) for _ in range(3))
    z[::2] = (-x * y * (1 + torch.randint(-3, 4, (4000,)) * torch.finfo(dtype).eps))[::2]
    if single:
        x[::5], z[::5] = x[::5] * 2.0**-60, z[::5] * 2.0**-100
    expected = [function(*values) for values in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)]
    found = oracle.fma32(x, y, z) if single else oracle.fma64(x, y, z)
    assert_same_bits(found, torch.tensor(expected, dtype=dtype), "fma")


def golden(order: str) -> dict[torch.dtype, str]:
    return {**GOLDEN, torch.bfloat16: GOLDEN_BF16[order]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_bits(dtype):
    assert contraction_digest.digest(dtype) == golden(contraction.bf16_order())[dtype]


@pytest.mark.parametrize("order", numerics.BF16_ORDERS)
def test_golden_bits_of_either_bf16_order_are_the_oracle_s(order, monkeypatch):
    monkeypatch.setattr(oracle, "bf16_order", lambda: order)
    assert contraction_digest.digest(torch.bfloat16, oracle) == GOLDEN_BF16[order]


def test_a_bf16_order_without_a_meaning_is_refused():
    script = "from bi_compile.templates import contraction; contraction.bf16_order()"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BI_COMPILE_BF16_ORDER": "tile"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert 'BI_COMPILE_BF16_ORDER is "tile"; it may be "tiles" or "pairs"' in run.stderr


def test_every_instruction_set_has_the_same_bits():
    supported = {"AVX512": ["avx512", "avx2", "portable"], "AVX2": ["avx2", "portable"]}
    sets = supported.get(torch.backends.cpu.get_cpu_capability(), ["portable"])
    forms = [{"BI_COMPILE_ISA": name} for name in sets] + [{"BI_COMPILE_NO_BF16_INSTRUCTIONS": "1"}]
    for order in numerics.BF16_ORDERS:
        runs = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.templates.contraction_digest"],
                env={**os.environ, **form, "BI_COMPILE_BF16_ORDER": order},
                stdout=subprocess.PIPE,
                text=True,
            )
            for form in forms
        ]
        expected = [f"{dtype} {value}" for dtype, value in golden(order).items()]
        for form, run in zip(forms, runs, strict=True):
            assert run.communicate()[0].splitlines() == expected, (order, form)


# Invariance


def _rows_alone_differ(product, a, b) -> int:
    whole = product(a, b)
    return sum(not same_bits(product(a[i : i + 1], b), whole[i : i + 1]) for i in range(a.shape[0]))


@given(dtypes, st.integers(1, 60), st.integers(1, 700), st.integers(1, 300), seeds)
def test_a_row_does_not_see_the_others(dtype, m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = data(m, k, dtype=dtype, seed=seed), data(k, n, dtype=dtype, seed=seed + 1)
    whole = bi.mm(a, b)
    members = torch.randperm(m, generator=generator)[: int(torch.randint(1, m + 1, (), generator=generator))]
    assert_same_bits(bi.mm(a[members], b), whole[members], "rows")
    columns = torch.randperm(n, generator=generator)[: int(torch.randint(1, n + 1, (), generator=generator))]
    assert_same_bits(bi.mm(a, b[:, columns]), whole[:, columns], "columns")
    w, start = b.t().contiguous(), int(columns[0])
    assert_same_bits(bi.linear(a[members], w[start:], None), whole[members][:, start:], "linear")


def test_control_stock_rows_see_each_other():
    found = 0
    for m in (2, 3, 7, 16, 33, 64):
        a, b = data(m, 768, dtype=torch.float32), data(768, 384, dtype=torch.float32, seed=1)
        found += _rows_alone_differ(torch.mm, a, b)
        assert _rows_alone_differ(bi.mm, a, b) == 0
    assert found > 0


@given(dtypes, st.integers(1, 7), st.integers(1, 20), st.integers(1, 300), st.integers(1, 70), seeds)
def test_a_matrix_does_not_see_the_batch(dtype, batch, m, k, n, seed):
    a, b = data(batch, m, k, dtype=dtype, seed=seed), data(batch, k, n, dtype=dtype, seed=seed + 1)
    whole = bi.bmm(a, b)
    for i in range(batch):
        assert_same_bits(bi.mm(a[i], b[i]), whole[i], f"matrix {i}")
    assert_same_bits(bi.bmm(a.flip(0), b.flip(0)), whole.flip(0), "position")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 700, 500), (8, 700, 500), (50, 700, 300), (500, 300, 40), (600, 600, 1)]
)
def test_threads_do_not_show(dtype, shape):
    m, k, n = shape
    a, b = data(m, k, dtype=dtype), data(n, k, dtype=dtype, seed=1)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((bi.linear(a, b, None), bi.mm(a, b.t().contiguous())))
    for of_linear, of_mm in results:
        assert_same_bits(of_linear, results[0][0], "linear")
        assert_same_bits(of_mm, results[0][0], "mm")


@given(dtypes, st.integers(1, 40), st.integers(1, 300), st.integers(1, 70), seeds)
def test_layout_does_not_show(dtype, m, k, n, seed):
    a, b = data(m, k, dtype=dtype, seed=seed), data(k, n, dtype=dtype, seed=seed + 1)
    expected = bi.mm(a, b)

    def strided(x: torch.Tensor) -> torch.Tensor:
        room = torch.full((2 * x.shape[0] + 1, 3 * x.shape[1] + 2), torch.nan, dtype=x.dtype)
        view = room[1::2, 2::3]
        return view.copy_(x)

    transposed = [x.t().contiguous().t() for x in (a, b)]
    for x in (a, transposed[0], strided(a)):
        for y in (b, transposed[1], strided(b)):
            assert_same_bits(bi.mm(x, y), expected, f"{x.stride()} {y.stride()}")
    # The product transposed sums the same products in the same order.
    assert_same_bits(bi.mm(b.t(), a.t()), expected.t(), "transposed")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expanded_and_overlapping_views(dtype):
    row, b = data(1, 300, dtype=dtype), data(300, 33, dtype=dtype, seed=1)
    assert_same_bits(bi.mm(row.expand(5, 300), b), bi.mm(row, b).expand(5, 33), "expanded rows")
    assert_same_bits(
        bi.bmm(row.expand(4, 3, 300), b.expand(4, 300, 33)), bi.mm(row, b).expand(4, 3, 33), "batch"
    )
    one = data(1, 1, dtype=dtype)
    assert_same_bits(
        bi.mm(one.expand(3, 40), one.expand(40, 50)), oracle.mm(one.expand(3, 40), one.expand(40, 50))
    )
    windows = data(400, dtype=dtype).as_strided((40, 300), (1, 1))
    assert_same_bits(bi.mm(windows, b), bi.mm(windows.contiguous(), b), "windows")
    assert_same_bits(
        bi.linear(b.t(), windows, None), bi.mm(b.t(), windows.contiguous().t()), "windows as weights"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_trailing_zeros_change_nothing(dtype):
    a, b = data(5, 400, dtype=dtype), data(400, 20, dtype=dtype, seed=1)
    longer = bi.mm(torch.nn.functional.pad(a, (0, 300)), torch.nn.functional.pad(b, (0, 0, 0, 300)))
    assert_same_bits(longer, bi.mm(a, b), "padded")


def test_flush_denormal_of_the_caller_does_not_show():
    a, b = (
        data(5, 300, dtype=torch.float32) * 2.0**-70,
        data(300, 40, dtype=torch.float32, seed=1) * 2.0**-70,
    )
    expected = bi.mm(a, b)
    torch.set_flush_denormal(True)
    try:
        assert_same_bits(bi.mm(a, b), expected, "flushed")
    finally:
        torch.set_flush_denormal(False)


# Values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 768, 40), (33, 300, 130), (64, 2000, 16)])
def test_as_near_to_the_truth_as_stock(dtype, shape):
    m, k, n = shape
    a, w, bias = (torch.randn(*s).to(dtype) for s in ((m, k), (n, k), (n,)))
    # numpy's long double has the bits to judge fp64 by; it sums slowly, without BLAS.
    a_exact, w_exact, bias_exact = (t.double().numpy().astype(np.longdouble) for t in (a, w, bias))
    truth = a_exact @ w_exact.T + bias_exact

    def error(found: torch.Tensor) -> float:
        # Root mean square: the largest of a few elements is decided by luck.
        return float(np.sqrt(np.square(found.double().numpy() - truth).mean()) / np.abs(truth).max())

    ours, stock = error(bi.linear(a, w, bias)), error(torch.nn.functional.linear(a, w, bias))
    assert ours <= 1.5 * stock + torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_nan_and_inf_stay_in_their_row_and_column(dtype, bad, rows):
    a, b = torch.randn(rows, 300).to(dtype), torch.randn(300, 70).to(dtype)
    w = b.t().contiguous()
    clean = bi.mm(a, b)
    a_bad = a.clone()
    a_bad[rows // 2, 17] = bad
    found = bi.mm(a_bad, b)
    others = [i for i in range(rows) if i != rows // 2]
    assert_same_bits(found[others], clean[others], "other rows")
    assert not found[rows // 2].isfinite().any()
    torch.testing.assert_close(found[rows // 2], a_bad[rows // 2] @ b, equal_nan=True, rtol=0, atol=0)
    w[33, 5] = bad
    found = bi.linear(a, w, None)
    others = [j for j in range(70) if j != 33]
    assert_same_bits(found[:, others], clean[:, others], "other columns")
    assert not found[:, 33].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_has_one_form(dtype):
    integers = {4: torch.int32, 8: torch.int64, 2: torch.int16}[dtype.itemsize]
    a, b = torch.ones(3, 10, dtype=dtype), torch.ones(10, 40, dtype=dtype)
    a.view(integers)[1, 3] = -1
    b[2, 5] = torch.nan
    b.view(integers)[2, 6] = -2
    found = bi.mm(a, b)
    patterns = found.view(integers)[found.isnan()]
    assert (patterns == torch.tensor([torch.nan], dtype=dtype).view(integers)).all()
    assert len(patterns) == 40 + 2 * 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_times_inf_is_nan_and_beta_zero_reads_nothing(dtype):
    a, b = torch.zeros(2, 3, dtype=dtype), torch.full((3, 4), torch.inf, dtype=dtype)
    assert bi.mm(a, b).isnan().all()
    c = torch.full((4,), torch.nan, dtype=dtype)
    ones = torch.ones(2, 3, dtype=dtype), torch.ones(3, 4, dtype=dtype)
    assert (bi.addmm(c, *ones, beta=0) == 3).all()
    assert bi.addmm(c, *ones).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_sizes(dtype):
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    assert bi.mm(empty(0, 3), empty(3, 4)).shape == (0, 4)
    assert bi.mm(empty(2, 3), empty(3, 0)).shape == (2, 0)
    assert_same_bits(bi.mm(empty(2, 0), empty(0, 4)), torch.zeros(2, 4, dtype=dtype), "K = 0")
    assert bi.bmm(empty(0, 2, 3), empty(0, 3, 4)).shape == (0, 2, 4)
    assert bi.linear(empty(2, 0, 3), empty(4, 3), empty(4)).shape == (2, 0, 4)
    bias = torch.randn(4).to(dtype)
    assert_same_bits(bi.linear(empty(2, 3, 0), empty(4, 0), bias), bias.expand(2, 3, 4), "bias alone")
    assert_same_bits(bi.addmm(bias, empty(2, 0), empty(0, 4), beta=2), (2 * bias).expand(2, 4), "beta * c")


# Gradients, tracing, errors


def test_gradients():
    def doubles(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    check = torch.autograd.gradcheck
    assert check(contraction.linear, (doubles(2, 3, 4), doubles(5, 4), doubles(5)))
    assert check(lambda x, w: contraction.linear(x, w), (doubles(4), doubles(5, 4)))
    assert check(contraction.mm, (doubles(2, 3), doubles(3, 4)))
    assert check(contraction.bmm, (doubles(2, 3, 4), doubles(2, 4, 2)))
    for c in (doubles(4), doubles(2, 1), doubles()):
        assert check(
            lambda c, a, b: contraction.addmm(c, a, b, beta=2, alpha=3), (c, doubles(2, 3), doubles(3, 4))
        )
    assert check(contraction.baddbmm, (doubles(3, 1, 4), doubles(3, 2, 3), doubles(3, 3, 4)))
    assert torch.autograd.gradgradcheck(contraction.mm, (doubles(2, 3), doubles(3, 2)))


def test_traces_with_symbolic_sizes():
    from torch.fx.experimental.proxy_tensor import make_fx

    def loss_and_gradient(x, w, b):
        out = contraction.linear(x, w, b)
        return out, *torch.autograd.grad(out.sum(), (x, w, b))

    x, w, b = (torch.randn(*s, requires_grad=True) for s in ((3, 7, 16), (24, 16), (24,)))
    graph = make_fx(loss_and_gradient, tracing_mode="symbolic")(x, w, b)
    assert sum(node.target is bi.linear.default for node in graph.graph.nodes) == 2
    other = torch.randn(5, 9, 16, requires_grad=True)
    for found, expected in zip(graph(other, w, b), loss_and_gradient(other, w, b), strict=True):
        assert_same_bits(found, expected, "traced")


def test_fake_tensors_have_the_shapes_of_real_ones():
    arguments = torch.randn(4, 3), torch.randn(3, 5)
    for op, inputs in [(bi.mm, arguments), (bi.addmm, (torch.randn(5), *arguments))]:
        torch.library.opcheck(op.default, inputs)
    torch.library.opcheck(bi.linear.default, (torch.randn(2, 4, 3), torch.randn(5, 3), None))
    torch.library.opcheck(bi.bmm.default, (torch.randn(2, 4, 3), torch.randn(2, 3, 5)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bool], ids=str)
def test_other_dtypes_are_refused_by_name(dtype):
    a = torch.zeros(2, 2, dtype=dtype)
    for name, call in {"mm": contraction.mm, "linear": contraction.linear}.items():
        with pytest.raises(UnsupportedDtypeError, match=f"{name} does not support {dtype}"):
            call(a, a)
    with pytest.raises(RuntimeError, match="mm does not support"):
        bi.mm(a, a)
    with pytest.raises(UnsupportedDtypeError):
        bi.mm(a.to("meta"), a.to("meta"))


def test_shapes_and_dtypes_that_do_not_fit_are_refused():
    a, b = torch.randn(2, 3), torch.randn(4, 5)
    with pytest.raises(RuntimeError, match=r"mm: shapes \[2, 3\] and \[4, 5\] cannot be multiplied"):
        bi.mm(a, b)
    with pytest.raises(RuntimeError, match="expected 3-D"):
        bi.bmm(a, b)
    with pytest.raises(RuntimeError, match="one dtype"):
        bi.mm(a, torch.randn(3, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        bi.linear(a, b, None)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        bi.linear(a.to("meta"), b.to("meta"), None)
    with pytest.raises(RuntimeError):
        bi.addmm(torch.randn(7), a, torch.randn(3, 5))
