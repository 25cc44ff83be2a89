"""Distances become norms of differences, gradients too, in every mode."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.report import collect
from tests.bits import assert_same_bits, same_bits
from tests.passes.tables import check_left_alone, check_rewritten

aten = torch.ops.aten
X, Y = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
ORDERS = (0.0, 1.0, 1.5, 2.0, 3.0, float("inf"))
CDIST = {"bi_compile.cdist"}

REWRITTEN = {
    "cdist": (lambda x, y: aten._cdist_forward(x, y, 2.0, None), (X, Y), CDIST),
    "cdist, broadcast": (lambda x, y: aten._cdist_forward(x, y[:1], 1.0, None), (X, Y), CDIST),
    "pdist": (lambda x: F.pdist(x[0]), (X,), CDIST),
    "gradient of cdist": (
        lambda x, y: aten._cdist_backward(
            x[:, :, :4].contiguous(), x, y, 3.0, aten._cdist_forward(x, y, 3.0, None)
        ),
        (X, Y),
        CDIST,
    ),
}  # fmt: skip
LEFT_ALONE = {"differences": (lambda x: (x[:, :1] - x).abs(), (X,))}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


@pytest.mark.parametrize("p", ORDERS)
def test_gradients_are_near_float64(p):
    def gradients(x, y):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        distances = torch.cdist(x, y, p), F.pdist(x[0], p)
        sum((d * torch.arange(d.numel()).view_as(d)).sum() for d in distances).backward()
        return x.grad, y.grad

    with bi_compile.eager():
        ours = gradients(X, Y)
    for got, exact in zip(ours, gradients(X.double(), Y.double()), strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_equal_rows_is_zero():
    for p in ORDERS:
        x = torch.ones(3, 4, requires_grad=True)
        with bi_compile.eager():
            (torch.cdist(x, torch.ones(2, 4), p).sum() + F.pdist(x, p).sum()).backward()
        assert_same_bits(x.grad, torch.zeros(3, 4))


def distances(x, y):
    return torch.cdist(x, y), torch.cdist(x, y, 2.0, "use_mm_for_euclid_dist"), torch.cdist(x, y, p=1.0)


def test_compiled_is_eager_forward_and_backward_and_no_row_count_shows():
    torch.compiler.reset()
    x, y = torch.randn(40, 33) + 10, torch.randn(7, 33)

    def run(fn, x):
        x = x.clone().requires_grad_()
        outputs = fn(x, y)
        sum(o.sum() for o in outputs).backward()
        return [o.detach() for o in outputs] + [x.grad]

    with bi_compile.eager():
        want = run(distances, x)
    compiled = torch.compile(distances, backend="batch_invariant")
    with collect() as report:
        for part in (slice(0, 40), slice(3, 9)):
            for got, whole in zip(run(compiled, x[part]), want, strict=True):
                assert_same_bits(got, whole[part])
    assert report.canonical["bi_compile.cdist"]
    stock = torch.cdist(x, y)[3:9], torch.cdist(x[3:9], y)
    assert not same_bits(*stock), "stock torch chooses by the number of rows"


def test_an_unknown_mode_is_refused_as_in_eager():
    with bi_compile.eager(), pytest.raises(ValueError, match="fast is not a valid value for compute_mode"):
        torch.cdist(X, Y, compute_mode="fast")
