"""Pointwise ops: compiled in any batch, fused or alone, vector body or tail = our eager ops, bit for bit."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile import backend, pipeline
from tests.bits import assert_same_bits, same_bits
from tests.passes.tables import op_names, traced

OPS = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": lambda x: x.abs().log(),
    "log1p": lambda x: x.abs().log1p(),
    "log2": lambda x: x.abs().log2(),
    "log10": lambda x: x.abs().log10(),
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": lambda x: torch.asin(x / 16),
    "acos": lambda x: torch.acos(x / 16),
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x.abs() + 1),
    "atanh": lambda x: torch.atanh(x / 16),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": lambda x: torch.erfinv(x / 16),
    "lgamma": lambda x: torch.lgamma(x.abs() + 0.5),
    "sqrt": lambda x: x.abs().sqrt(),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "reciprocal": lambda x: 1 / x,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "relu": F.relu,
    "relu6": F.relu6,
    "maximum": lambda x: torch.maximum(x, x.flip(-1)) + torch.minimum(x * 0, -x * 0),
    "maximum_of_two_dtypes": lambda x: torch.maximum(x, torch.full((), 0.25)) + torch.minimum(x, x.half()),
    "xlogy": lambda x: torch.xlogy(x, x.flip(-1).abs()) + torch.xlogy(0.7, x.abs()),
    "clamp_min": lambda x: x.clamp_min(0) + x.clamp_max(x.flip(-1)),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "add_scalar": lambda x: x + 1.7,
    "mul_scalar": lambda x: x * 0.1,
    "div_scalar": lambda x: x / 3,
    "rsub_scalar": lambda x: 1.1 - x,
    "add_alpha": lambda x: torch.add(x, x.flip(-1), alpha=0.3),
    "sub_alpha": lambda x: torch.sub(x, x.flip(-1), alpha=0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(-1), value=0.7),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.flip(-1).abs() + 1, value=0.7),
    "lerp": lambda x: torch.lerp(x, x.flip(-1), 0.3),
    "fma_shape": lambda x: x * x.flip(-1) + x,
    "pow2": lambda x: x**2,
    "pow3": lambda x: x**3,
    "pow_half": lambda x: x.abs() ** 0.5,
    "pow_1.3": lambda x: x.abs() ** 1.3,
    "pow_tensor": lambda x: x.abs() ** x.flip(-1),
    "pow_base": lambda x: 1.3**x,
    "atan2": lambda x: torch.atan2(x, x.flip(-1)),
    "hypot": lambda x: torch.hypot(x, x.flip(-1)),
    "fmod": lambda x: torch.fmod(x, 0.7),
    "remainder": lambda x: torch.remainder(x, -0.3),
    "floor_divide": lambda x: x // 0.3,
    "clamp": lambda x: x.clamp(-0.3, 0.7),
    "compare": lambda x: (x > 0.3).to(x.dtype) + (x <= 1.1),
    "softshrink": lambda x: F.softshrink(x, 0.4) + torch.nn.Softshrink(0.3)(x * 0.1),
    "where": lambda x: F.gelu(torch.where(x > 0, x, -x * 0.5)),
    "from_integers": lambda x: (x * 3).long().float().mul(0.1).exp(),
    "to_integers": lambda x: (x * 100).int().to(x.dtype) / 7,
    "masked_fill": lambda x: x.masked_fill(x < 0.1, 0.3).exp(),
    "zero_dim": lambda x: x * torch.tensor(0.1) + torch.tensor(1.7),
    "chain": lambda x: F.silu(x * 0.1 + 1.7) * x + torch.tanh(x) / 3,
    "casts": lambda x: (x.float() * 1.1).to(x.dtype).float() + x.half().float(),
    "round": lambda x: (x * 3).round() + x.floor() + x.ceil() + x.trunc() + x.frac(),
    "round_decimals": lambda x: x.round(decimals=1) + x.round(decimals=3) + (x * 99).round(decimals=-1),
    "nan_to_num": lambda x: torch.nan_to_num(x.log()),
}
GROUPS = [list(OPS)[i : i + 13] for i in range(0, len(OPS), 13)]


def data(dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(40, 67) * 3
    x[3, 5], x[4, 1], x[5, 60] = float("nan"), float("inf"), -0.0
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g[0])
def test_compiled_in_any_batch_equals_eager_ops_one_by_one(group, dtype):
    torch.compiler.reset()
    x = data(dtype)
    with bi_compile.eager():
        expected = [OPS[name](x) for name in group]
    compiled = torch.compile(lambda x: [OPS[name](x) for name in group], backend="batch_invariant")
    for rows in (slice(0, 40), slice(3, 4), slice(4, 11)):
        for name, got, want in zip(group, compiled(x[rows].clone()), expected, strict=True):
            want = want[rows]
            # A NaN is a NaN: hosts give it different payloads.
            assert torch.equal(got.isnan(), want.isnan()), name
            assert_same_bits(got.nan_to_num(7), want.nan_to_num(7), name)


@pytest.mark.parametrize("name", list(OPS))
def test_eager_ops_are_as_accurate_as_stock(name):
    x = (torch.rand(2000) * 3 + 0.05).float()
    exact = OPS[name](x.double())
    with bi_compile.eager():
        ours = OPS[name](x).double()
    stock = OPS[name](x).double()
    finite = exact.isfinite() & stock.isfinite()
    scale = exact.abs().clamp_min(1)
    error = ((ours - exact).abs() / scale)[finite].max()
    bound = ((stock - exact).abs() / scale)[finite].max()
    # at::vec promises a few units in the last place where MKL gives under one.
    assert error <= 1.5 * bound + 1e-6, f"{float(error):.2e} against stock {float(bound):.2e}"


def test_control_stock_pytorch_depends_on_the_position():
    x = data(torch.float32)
    assert any(not same_bits(f(x)[3:4].nan_to_num(7), f(x[3:4].clone()).nan_to_num(7)) for f in OPS.values())


def test_a_function_outside_the_list_is_refused_by_name():
    with (
        pytest.raises(
            bi_compile.BatchInvariantError, match=r"digamma\.default has no batch-invariant lowering"
        ),
        bi_compile.eager(),
    ):
        torch.digamma(torch.ones(3))


WIDENED = {
    "full": lambda x: torch.full((), 0.3).double() * x,
    "full in bf16": lambda x: torch.full((3,), 0.3, dtype=torch.bfloat16).float() * x,
    "filled": lambda x: x.float().fill_(0.3).double() * x,
    "product of constants": lambda x: (torch.ones(3) * 0.3).double() * x,
    "large integers": lambda x: (torch.arange(2**25 - 1, 2**25 + 2).float() * 3 + 1).double() * x,
}


@pytest.mark.parametrize("name", WIDENED)
def test_constants_round_to_their_dtype_before_they_are_widened(name):
    torch.compiler.reset()
    x = torch.randn(4, 3, dtype=torch.float64)
    with bi_compile.eager():
        want = WIDENED[name](x)
    got = torch.compile(WIDENED[name], backend="batch_invariant")(x)
    assert_same_bits(got, want)
    assert_same_bits(want, WIDENED[name](x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_fractional_part_of_what_has_none_is_plus_zero(dtype):
    torch.compiler.reset()
    x = torch.tensor([-0.0, 0.0, -2.0, 3.0, -(2.0**30), -0.25, -7.5] * 5, dtype=dtype)
    assert "aten.trunc" in op_names(traced(torch.frac, x))
    with bi_compile.eager():
        want = torch.frac(x)
    assert not want[:5].signbit().any()
    assert torch.equal(want[5:7].double(), torch.tensor([-0.25, -0.5]).double())
    assert_same_bits(want, torch.frac(x))
    assert_same_bits(torch.compile(torch.frac, backend="batch_invariant")(x), want)


def test_the_gradient_of_hardshrink_is_an_op_that_hosts_lack():
    torch.compiler.reset()
    x = torch.tensor([[-1.0, -0.5, 0.2, 0.5, 0.7]] * 3, requires_grad=True)
    compiled = torch.compile(lambda x: F.hardshrink(x) * 3, backend="batch_invariant")
    (graph,) = torch.autograd.grad(compiled(x).sum(), x)
    (stock,) = torch.autograd.grad((F.hardshrink(x) * 3).sum(), x)
    with bi_compile.eager():
        (outside,) = torch.autograd.grad((F.hardshrink(x) * 3).sum(), x)
    assert torch.equal(graph, stock)
    assert torch.equal(outside, stock)


def in_place(name):
    return lambda x, a, b: getattr(x.clone(), name)(a, b, value=0.3)


OF_THREE = {
    "addcdiv": lambda x, a, b: torch.addcdiv(x, a, b, value=0.3),
    "addcdiv of one": lambda x, a, b: torch.addcdiv(x, a, b),
    "addcdiv, out": lambda x, a, b: torch.addcdiv(x, a, b, value=0.3, out=torch.empty_like(x)),
    "method": lambda x, a, b: x.addcdiv(a, b, value=0.3),
    "addcmul": lambda x, a, b: torch.addcmul(x, a, b, value=0.3),
    "addcdiv_": in_place("addcdiv_"),
    "addcmul_": in_place("addcmul_"),
    "add_ of a tensor's multiple": lambda x, a, b: x.clone().add_(a * b, alpha=torch.tensor(0.3)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OF_THREE)
def test_what_dynamo_takes_apart_has_the_gradients_of_eager_ops(name, dtype):
    """Random model 152 of seed 12: compiled gradients of `addcdiv` were other ones than outside graphs."""
    torch.compiler.reset()
    torch.manual_seed(0)
    f, upstream = OF_THREE[name], torch.randn(40, 33).to(dtype)
    x = torch.randn(3, 40, 33).to(dtype)

    def run(f, rows=slice(None), double=False):
        leaves = [t[rows].to(torch.float64 if double else dtype).requires_grad_("out" not in name) for t in x]
        y = f(*leaves)
        return (
            [y]
            if "out" in name
            else [y, *torch.autograd.grad(y, leaves, upstream[rows].to(y.dtype), allow_unused=True)]
        )

    with bi_compile.eager():
        want = run(f)
    stock, exact = run(f), run(f, double=True)
    compiled = torch.compile(f, backend="batch_invariant", fullgraph=True)
    for rows in (slice(None), slice(3, 4)):
        for got, value in zip(run(compiled, rows), want, strict=True):
            assert (got is None) == (value is None)
            if got is not None:
                assert_same_bits(got, value[rows])
    for ours, theirs, right in zip(want, stock, exact, strict=True):
        if right is not None:
            assert (ours - right).abs().mean() <= 1.5 * (theirs - right).abs().mean()


def test_ops_that_a_rewrite_is_made_of_round_as_they_do_one_by_one(monkeypatch):
    """In a fused kernel, too: Inductor takes only what the user wrote for an op that rounds."""
    table, op = pipeline.canonical(), torch.ops.aten.addcdiv.default
    monkeypatch.setitem(table, op, lambda x, a, b, *, value: x + a / b * value)
    monkeypatch.setattr(backend, "decompositions", pipeline.decompositions.__wrapped__)
    x, a, b = torch.randn(3, 40, 33).bfloat16()
    with torch.compiler.config.patch(force_disable_caches=True):
        compiled = torch.compile(lambda x, a, b: x.addcdiv(a, b, value=0.3), backend="batch_invariant")
        got = compiled(x, a, b)
    assert_same_bits(got, x + a / b * 0.3)
    assert not same_bits(got, (x.float() + a.float() / b.float() * 0.3).bfloat16())


def test_functions_of_other_backends_are_traced_as_before():
    torch.compiler.reset()
    graphs = []

    def keep(module, inputs):
        graphs.append(module.graph)
        return module

    for how in ("batch_invariant", keep):
        torch.compile(lambda x: torch.addcdiv(x, x, x, value=2), backend=how)(torch.ones(3))
    assert torch.div in {node.target for node in graphs[0].nodes}
