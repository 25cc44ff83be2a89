"""Gradients of pooling are chains in the order of the windows, the same bits in graphs, outside and alone."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from tests.bits import assert_same_bits, order_sensitive
from tests.passes.tables import check_any_batch, check_left_alone, check_rewritten, op_names, traced

X1 = torch.randn(3, 4, 23)
X2 = torch.randn(3, 4, 11, 9)
X3 = torch.randn(2, 3, 7, 6, 5)

POOLS = {
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), X1),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 0)), X2),
    "avg_pool2d of a sample": (lambda x: F.avg_pool2d(x[0], 3), X2),
    "avg_pool2d without its padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), X2),
    "avg_pool2d, windows that end outside": (lambda x: F.avg_pool2d(x, 4, 3, 1, ceil_mode=True), X2),
    "avg_pool2d with gaps": (lambda x: F.avg_pool2d(x, 2, 3), X2),
    "avg_pool2d with its own divisor": (lambda x: F.avg_pool2d(x, 3, divisor_override=5), X2),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 3, 2, 1), X3),
    "a long window": (lambda x: F.avg_pool1d(x, 19, 2, 3), X1),
    "lp_pool": (lambda x: F.lp_pool2d(x.abs() + 0.1, 2, 3), X2),
    "adaptive, bins alike": (lambda x: F.adaptive_avg_pool2d(x, (11, 3)), X2),
    "adaptive, bins that overlap": (lambda x: F.adaptive_avg_pool2d(x, (4, 5)), X2),
    "adaptive, more bins than elements": (lambda x: F.adaptive_avg_pool2d(x, (13, 20)), X2),
    "adaptive 3d": (lambda x: F.adaptive_avg_pool3d(x, (2, 4, 1)), X3),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), X2),
    "max_pool3d": (lambda x: F.max_pool3d(x, 3, 2, 1), X3),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 7), X1),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, (4, 9)), X2),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, (3, 2, 5)), X3),
}


def gradient(pool):
    def run(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(pool(leaf).square().sum(), leaf)

    return run


@pytest.mark.parametrize("name", POOLS)
def test_is_rewritten(name):
    pool, x = POOLS[name]
    check_rewritten(gradient(pool), (x,), set())
    assert not any("pool" in op for op in op_names(traced(gradient(pool), x)))


def test_is_left_alone():
    check_left_alone(lambda x: x.unfold(2, 3, 2), (X1,))


def _pooled(x):
    half = x.to(torch.bfloat16)
    pools = (
        F.avg_pool2d(x, 3, 2, 1),
        F.avg_pool2d(half, 3, 1),
        F.adaptive_avg_pool2d(half, (3, 2)),
        F.max_pool2d(x, 3, 1, 1),
        F.adaptive_max_pool2d(half, (4, 5)),
    )
    return torch.cat([pool.flatten(1).float() for pool in pools], 1)


def test_compiled_for_any_batch():
    check_any_batch(_pooled, order_sensitive(7, 3, 15, 18), alone=True)


def test_an_element_adds_up_its_windows_in_order():
    """Along one dim after the other, last first, by its place in the window: part of the definition."""
    sent = order_sensitive(2, 3, 4, 5)
    x = torch.zeros(2, 3, 6, 7, requires_grad=True)
    with bi_compile.eager():
        F.avg_pool2d(x, 3, 1).backward(sent)
    assert x.grad is not None
    assert_same_bits(x.grad, _added(_added(sent / 9, 3, range(3)), 2, range(3)))
    # Control: the other order has other bits.
    assert not torch.equal(x.grad, _added(_added(sent / 9, 3, (2, 1, 0)), 2, (2, 1, 0)))


def _added(share, dim, order):
    pads = [F.pad(share.movedim(dim, -1), (i, 2 - i)).movedim(-1, dim) for i in order]
    return (pads[0] + pads[1]) + pads[2]
