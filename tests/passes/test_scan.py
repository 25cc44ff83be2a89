"""Running sums become one chain, gradients too; comparisons and integers stay as they are."""

import pytest
import torch

import bi_compile
from bi_compile.report import collect
from tests.bits import assert_same_bits, order_sensitive, same_bits
from tests.passes.tables import check_left_alone, check_rewritten

X = torch.randn(3, 5, 7)
Y = 1 + X.abs() / 8

REWRITTEN = {
    "cumsum": (lambda x: x.cumsum(1), (X,), {"bi_compile.cumsum"}),
    "cumsum in another dtype": (lambda x: x.cumsum(-1, dtype=torch.float64), (X,), {"bi_compile.cumsum"}),
    "cumsum of integers as floats": (
        lambda x: x.long().cumsum(0, dtype=torch.float32),
        (X,),
        {"bi_compile.cumsum"},
    ),
    "cumprod": (lambda x: x.cumprod(-1), (Y,), {"bi_compile.cumprod"}),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (X,), {"bi_compile.logcumsumexp"}),
    "cumulative_trapezoid": (lambda x: torch.cumulative_trapezoid(x, dim=1), (X,), {"bi_compile.cumsum"}),
}
LEFT_ALONE = {
    "cumsum of integers": (lambda x: x.cumsum(1), (X.long(),)),
    "cumprod of booleans": (lambda x: (x > 0).cumprod(1), (X,)),
    "cumsum of floats as integers": (lambda x: x.cumsum(1, dtype=torch.int32), (X,)),
    "cummax": (lambda x: tuple(x.cummax(1)), (X,)),
    "cummin": (lambda x: tuple(x.cummin(-1)), (X,)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


def everything(x):
    small = 1 + x / 4096
    return (
        x.cumsum(1),
        small.cumprod(1),
        (x / 256).logcumsumexp(1),
        *x.detach().cummax(1),
        *x.detach().cummin(1),
    )


def run(x):
    """All scans of x and the gradient of what is differentiable."""
    x = x.clone().requires_grad_()
    outputs = everything(x)
    sum((o * o.detach()).sum() for o in outputs if o.is_floating_point()).backward()
    return [o.detach() for o in outputs] + [x.grad]


def test_compiled_is_eager_forward_and_backward_for_any_batch():
    torch.compiler.reset()
    x = order_sensitive(9, 33)
    x[:, 7] = x[:, 3]
    with bi_compile.eager():
        want = run(x)
    compiled = torch.compile(everything, backend="batch_invariant")
    with collect() as report:
        for rows in (slice(0, 9), slice(4, 8)):
            part = x[rows].clone().requires_grad_()
            outputs = compiled(part)
            sum((o * o.detach()).sum() for o in outputs if o.is_floating_point()).backward()
            for got, whole in zip([*outputs, part.grad], want, strict=True):
                assert_same_bits(got.detach(), whole[rows])
    assert {"bi_compile.cumsum", "bi_compile.cumprod", "bi_compile.logcumsumexp"} <= set(report.canonical)


def test_control_gradients_of_stock_graphs_are_not_those_of_stock_eager():
    """On the CPU stock eager scans rows in order, whatever the batch; its graphs round gradients anew."""
    torch.compiler.reset()
    x = order_sensitive(9, 33, generator=torch.Generator().manual_seed(3))

    def gradient(function):
        leaf = x.clone().requires_grad_()
        out = function(leaf / 256)
        (out * out.detach()).sum().backward()
        return leaf.grad

    def scan(x):
        return x.logcumsumexp(1)

    assert not torch.equal(gradient(torch.compile(scan)), gradient(scan))


def test_cummax_is_fixed_by_its_definition():
    x = torch.tensor([1.0, 3.0, 3.0, float("nan"), 5.0, float("nan")])
    for rows in (x[None], x.expand(7, 6), x.repeat(5, 1).t().contiguous().t()):
        values, indices = rows.cummax(1)
        assert indices[0].tolist() == [0, 1, 2, 3, 3, 5]
        assert same_bits(values[0], x.gather(0, indices[0]))
