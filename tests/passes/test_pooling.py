"""Pooling becomes elementwise chains over shifted slices, or row sums where a window is long."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits, order_sensitive
from tests.passes.tables import check_left_alone, check_rewritten, op_names, traced

X1 = torch.randn(3, 4, 23)
X2 = torch.randn(3, 4, 11, 9)
X3 = torch.randn(2, 3, 7, 6, 5)

REWRITTEN = {
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), (X1,), set()),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 0)), (X2,), set()),
    "avg_pool2d of a sample": (lambda x: F.avg_pool2d(x[0], 3), (X2,), set()),
    "avg_pool2d without its padding": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        (X2,),
        set(),
    ),
    "avg_pool2d, windows that end outside": (
        lambda x: F.avg_pool2d(x, 4, 3, 1, ceil_mode=True),
        (X2,),
        set(),
    ),
    "avg_pool2d with its own divisor": (lambda x: F.avg_pool2d(x, 3, divisor_override=5), (X2,), set()),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 3, 2, 1), (X3,), set()),
    "a long window": (lambda x: F.avg_pool1d(x, 19, 2, 3), (X1,), {"bi_compile.sum"}),
    "adaptive to one": (lambda x: F.adaptive_avg_pool2d(x, 1), (X2,), {"bi_compile.mean"}),
    "adaptive, bins alike": (lambda x: F.adaptive_avg_pool2d(x, (11, 3)), (X2,), set()),
    "adaptive, bins that overlap": (lambda x: F.adaptive_avg_pool2d(x, (4, 5)), (X2,), set()),
    "adaptive, long bins": (lambda x: F.adaptive_avg_pool1d(x, 1), (X1,), set()),
    "adaptive to a row": (lambda x: F.adaptive_avg_pool2d(x[:, 0], (None, 1)), (X3,), set()),
    "adaptive 3d": (lambda x: F.adaptive_avg_pool3d(x, (2, 4, 1)), (X3,), set()),
    "lp_pool": (lambda x: F.lp_pool2d(x.abs() + 0.1, 2, 3), (X2,), set()),
    "local response norm": (lambda x: F.local_response_norm(x, 3), (X2,), set()),
    "area interpolation": (lambda x: F.interpolate(x, size=(4, 5), mode="area"), (X2,), set()),
}
MAXIMA = {
    "max_pool1d": (lambda x, i: F.max_pool1d(x, 3, 2, 1, return_indices=i), X1),
    "max_pool2d": (lambda x, i: F.max_pool2d(x, 3, 2, 1, return_indices=i), X2),
    "max_pool2d, dilated, ends outside": (
        lambda x, i: F.max_pool2d(x, (2, 3), 2, (0, 1), (3, 2), True, return_indices=i),
        X2,
    ),
    "max_pool3d": (lambda x, i: F.max_pool3d(x, 3, 2, 1, return_indices=i), X3),
    "adaptive_max_pool1d": (lambda x, i: F.adaptive_max_pool1d(x, 7, i), X1),
    "adaptive_max_pool2d": (lambda x, i: F.adaptive_max_pool2d(x, (4, 9), i), X2),
    "adaptive_max_pool3d": (lambda x, i: F.adaptive_max_pool3d(x, (3, 2, 5), i), X3),
}
LEFT_ALONE = {
    "windows as a view": (lambda x: x.unfold(2, 3, 2), (X1,)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)
    assert not any("pool" in op for op in op_names(traced(fn, *inputs)))


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MAXIMA)
def test_maxima_and_where_they_lie_are_those_of_stock(name, dtype):
    fn, x = MAXIMA[name]
    special = torch.tensor([float("-inf"), float("inf"), 1.0])
    x = torch.where(torch.rand(x.shape) < 0.2, special[torch.randint(3, x.shape)], x.round()).to(dtype)
    one_nan = x.clone()
    one_nan.flatten(2)[0, :, 17] = float("nan")
    for values in (x, one_nan, torch.full_like(x, float("-inf"))):
        graph = traced(lambda t: fn(t, True), values)
        assert not any("pool" in op for op in op_names(graph))
        with bi_compile.eager():
            ours = fn(values, True)
        for got, again, want in zip(ours, graph(values), fn(values, True), strict=True):
            assert_same_bits(got, again, "traced")
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def _pooled(x):
    half = x.to(torch.bfloat16)
    return (
        F.avg_pool2d(x, 3, 2, 1),
        F.avg_pool2d(half, 3, 2, 1),
        F.adaptive_avg_pool2d(half, (3, 2)),
        F.adaptive_avg_pool2d(x, 1),
        F.avg_pool2d(x, 17, 1, 4, ceil_mode=True),
        F.max_pool2d(half, 3, 2, 1),
    )


def test_compiled_for_any_batch():
    torch.compiler.reset()
    x = order_sensitive(6, 3, 15, 18)
    compiled = torch.compile(_pooled, backend="batch_invariant")
    assert_batch_invariant(compiled, x, trials=1, neighbours=(float("nan"),))
    with bi_compile.eager():
        eager = _pooled(x)
    for got, want in zip(compiled(x), eager, strict=True):
        assert_same_bits(got, want)
    strided = x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    for got, want in zip(compiled(strided), eager, strict=True):
        assert_same_bits(got, want)


def test_an_average_is_summed_in_order():
    """Along one dim after the other, last first: the order is part of the definition."""
    x = order_sensitive(2, 3, 6, 7)
    columns = (x[..., :5] + x[..., 1:6]) + x[..., 2:]
    want = ((columns[..., :4, :] + columns[..., 1:5, :]) + columns[..., 2:, :]) / 9
    with bi_compile.eager():
        assert_same_bits(F.avg_pool2d(x, 3, 1), want)


def test_control_the_order_shows():
    x = order_sensitive(4, 3, 6, 7)
    orders = [sum(x[..., i : i + 4, j : j + 5] for i, j in order) / 9 for order in _orders()]
    assert not torch.equal(*orders)


def _orders():
    forward = list(itertools.product(range(3), range(3)))
    return forward, forward[::-1]
