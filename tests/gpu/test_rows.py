"""Row reductions, softmax and norms on a CUDA device: the bits of the CPU's oracle, in any batch."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.templates import normalization, reduction, softmax
from bi_compile.templates.normalization import oracle as normalization_oracle
from bi_compile.templates.pointwise import contract as pointwise
from bi_compile.templates.reduction import oracle
from bi_compile.templates.softmax import oracle as softmax_oracle
from tests.bits import assert_same_bits, same_bits
from tests.templates.rows import DTYPES, EXACT, LAYOUTS, NEIGHBOURS, data

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LENGTHS = (1, 2, 31, 33, 384, 1023, 1025, 4096, 5000)
SIZES = (1, 2, 3, 4, 7, 8, 16, 33)


def device_function(name: str):
    """exp or log as the device computes it, for an oracle on the CPU."""
    return lambda x: pointwise.unary(x.cuda(), name).cpu()


exp, log = device_function("exp"), device_function("log")

# Exact and rounding operations alone: the device has the CPU's bits.
OPS = {
    **{name: (getattr(reduction, name), getattr(oracle, name)) for name in EXACT},
    "var": (reduction.var, oracle.var),
    "mean of var_mean": (lambda x, *a: reduction.var_mean(x, *a)[1], oracle.mean),
    "logsumexp": (reduction.logsumexp, lambda rows: oracle.logsumexp(rows, exp, log)),
    **{
        f"norm {p}": (
            lambda x, dims=(), p=p: reduction.norm(x, p, dims),
            lambda rows, p=p: oracle.norm(rows, p),
        )
        for p in (0.0, 1.0, 2.0, float("inf"), -float("inf"))
    },
}


def sample(name: str, *shape: int, dtype: torch.dtype, specials: bool = True) -> torch.Tensor:
    x = data(*shape, dtype=dtype, specials=specials)
    if name == "prod":
        return (1 + x.sign() * (x.abs() % 0.4)).to(dtype)
    return x / 64 if name == "logsumexp" else x


def check(name: str, x: torch.Tensor, dims=()) -> None:
    op, by_hand = OPS[name]
    expected = by_hand(oracle.as_rows(x, dims))
    if expected.dtype != torch.int64:
        expected = oracle.rounded(expected, x.dtype)
    on_device = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda").copy_(x)
    assert_same_bits(op(on_device, dims).cpu(), expected, f"{name} of {tuple(x.shape)} over {dims}")


@EACH_DTYPE
@pytest.mark.parametrize("name", sorted(OPS))
def test_the_bits_of_the_cpu(name, dtype):
    for n in LENGTHS:
        check(name, sample(name, 3, n, dtype=dtype), (1,))
    check(name, sample(name, 1200, 37, dtype=dtype), (0,))
    check(name, sample(name, 2, 30, 5, dtype=dtype), (0, 2))


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "amax", "argmax", "var", "logsumexp"])
def test_long_rows(name):
    check(name, sample(name, 1_200_001, dtype=torch.float32))
    check(name, sample(name, 2, 300_000, dtype=torch.bfloat16), (1,))
    check(name, sample(name, 70_000, 40, dtype=torch.float32), (0,))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_any_layout(layout):
    for dims in ((0,), (1,), (2,), (0, 2), ()):
        check("sum", LAYOUTS[layout](sample("sum", 3, 340, 5, dtype=torch.float32)), dims)


def row_ops(w: torch.Tensor, b: torch.Tensor) -> dict:
    return {
        "sum": lambda x: reduction.sum(x, (1,)),
        "logsumexp": lambda x: reduction.logsumexp(x / 256, (1,)),
        "softmax": lambda x: softmax.softmax(x / 256, 1),
        "log_softmax": lambda x: softmax.log_softmax(x / 256, 1),
        "layer_norm": lambda x: normalization.layer_norm(x, w.shape, w, b)[0],
        "rms_norm": lambda x: normalization.rms_norm(x, w.shape, w)[0],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [7, 384, 1500, 4096, 100_000])
@pytest.mark.parametrize("name", ["sum", "logsumexp", "softmax", "log_softmax", "layer_norm", "rms_norm"])
def test_a_row_is_the_same_alone_and_among_any_neighbours(name, n, dtype):
    rows = sample("sum", 6, n, dtype=dtype, specials=False).cuda()
    op = row_ops(*(torch.randn(n, device="cuda").to(dtype) for _ in range(2)))[name]
    alone = [op(rows[i : i + 1]) for i in range(6)]
    for size in (*SIZES, 300):
        for value in NEIGHBOURS:
            x = torch.full((size, n), value, dtype=dtype, device="cuda")
            x[size // 2] = rows[size % 6]
            assert_same_bits(op(x)[size // 2], alone[size % 6][0], f"{size} {value}")


def test_stock_pytorch_fails_the_same_check():
    x = data(33, 100_000, dtype=torch.float32).cuda()
    found = [same_bits(x.sum(1)[i], x[i : i + 1].sum(1)[0]) for i in range(33)]
    assert not all(found)


@EACH_DTYPE
@pytest.mark.parametrize("n", LENGTHS)
def test_softmax_is_its_operations_one_by_one(n, dtype):
    x = (data(5, n, dtype=dtype, specials=True).double() / 256).to(dtype)
    for y, dim in ((x, 1), (x.t().contiguous(), 0)):
        assert_same_bits(softmax.softmax(y.cuda(), dim).cpu(), softmax_oracle.softmax(y, dim, exp))
        found = softmax.log_softmax(y.cuda(), dim).cpu()
        assert_same_bits(found, softmax_oracle.log_softmax(y, dim, exp, log), "log")


def test_softmax_of_long_rows():
    x = data(2, 300_000, dtype=torch.float32) / 256
    assert_same_bits(softmax.softmax(x.cuda(), 1).cpu(), softmax_oracle.softmax(x, 1, exp))


@EACH_DTYPE
def test_norms_are_the_cpus(dtype):
    for shape, rank in (*(((3, n), 1) for n in LENGTHS), ((2, 3, 33), 2), ((2, 70_000), 1)):
        x = data(*shape, dtype=dtype, specials=True)
        own = x.shape[x.dim() - rank :]
        w, b = torch.randn(own).to(dtype), torch.randn(own).to(dtype)
        for found, expected in (
            (
                normalization.layer_norm(x.cuda(), own, w.cuda(), b.cuda()),
                normalization_oracle.layer_norm(x, own, w, b),
            ),
            (normalization.rms_norm(x.cuda(), own, w.cuda()), normalization_oracle.rms_norm(x, own, w)),
        ):
            for f, e in zip(found, expected, strict=True):
                assert_same_bits(f.cpu(), oracle.rounded(e, f.dtype), f"{shape}")


def test_a_kernel_brought_early_waits_for_those_ahead():
    def chain(x, w, after):
        y = x
        for i in range(12):
            norm = normalization.rms_norm if i % 2 else normalization.layer_norm
            y = after(norm(y, w.shape, w)[0])
            y = after(y @ x.t()) @ x if i % 3 == 0 else after(y + x)
            y = after(softmax.softmax(y, -1)) + after(reduction.sum(y, (1,), True)) * 2**-8
        return y

    def waits(y):
        torch.cuda.synchronize()
        return y

    for rows, n in ((1, 768), (40, 4096), (3000, 768)):
        x, w = torch.randn(rows, n, device="cuda").bfloat16(), torch.randn(n, device="cuda").bfloat16()
        expected = chain(x, w, waits)
        assert expected.isfinite().all()
        graph = torch.cuda.CUDAGraph()
        assert_same_bits(chain(x, w, lambda y: y), expected)
        with torch.cuda.graph(graph):
            found = chain(x, w, lambda y: y)
        for _ in range(10):
            found.fill_(torch.nan)
            graph.replay()
            assert_same_bits(found, expected)


@EACH_DTYPE
def test_a_sum_joined_with_its_norm_is_both(dtype, tmp_path):
    for shape in ((3, 70), (300, 4096), (2, 5, 768), (2, 70_000)):
        x, h = (data(*shape, dtype=dtype).cuda() for _ in range(2))
        w = torch.randn(shape[-1], device="cuda").to(dtype)

        def both(x, h, w):
            y = x + h
            return y, F.layer_norm(y, w.shape, w, w), F.rms_norm(h + x, w.shape, w, 1e-6)

        torch.compiler.reset()
        options = {"dump": str(tmp_path)}
        y, layer, rms = torch.compile(both, backend="batch_invariant", options=options)(x, h, w)
        assert_same_bits(y, x + h)
        assert_same_bits(layer, normalization.layer_norm(x + h, w.shape, w, w)[0])
        assert_same_bits(rms, normalization.rms_norm(x + h, w.shape, w)[0])
    graphs = "".join(file.read_text() for file in tmp_path.glob("*/*joined.py"))
    assert "added_layer_norm" in graphs
    assert "added_rms_norm" in graphs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_casts_within_a_fused_kernel_round(dtype):
    torch.compiler.reset()

    def cast(x):
        y = (x.float() * 1.7 - 0.3).to(dtype)
        return y.float() * 2.3, F.silu(y)

    x = torch.randn(10_001, device="cuda").to(dtype)
    with bi_compile.eager():
        expected = cast(x)
    for found, alone in zip(torch.compile(cast, backend="batch_invariant")(x), expected, strict=True):
        assert_same_bits(found, alone)


def test_a_zero_is_negated():
    torch.compiler.reset()
    x = torch.zeros(33, device="cuda")
    negative, difference = torch.compile(lambda x: (-x, -0.0 - x), backend="batch_invariant")(x)
    assert_same_bits(negative, torch.full_like(x, -0.0))
    assert_same_bits(difference, torch.full_like(x, -0.0))


@pytest.mark.parametrize("name", ["exp", "erf", "tanh", "sigmoid", "rsqrt", "log1p", "sin", "pow"])
def test_a_function_has_one_value_wherever_it_is_computed(name):
    x = torch.randn(10_001, device="cuda").abs() + 0.1
    y = torch.randn(10_001, device="cuda")
    eager = pointwise.binary(x, y, name) if name == "pow" else pointwise.unary(x, name)
    torch.compiler.reset()
    function = {"rsqrt": torch.rsqrt, "pow": torch.pow}.get(name) or getattr(torch, name)

    def fused(x, y):
        f = function(x, y) if name == "pow" else function(x)
        return f, f * y + x / 3.0

    f, more = torch.compile(fused, backend="batch_invariant")(x, y)
    assert_same_bits(f, eager)
    assert_same_bits(more, eager * y + x / torch.full_like(x, 3.0))
    torch.testing.assert_close(f, fused(x.double(), y.double())[0].float(), rtol=1e-5, atol=1e-6)
