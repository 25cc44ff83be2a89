"""Gradients of padding have one order, in graphs and outside; padding itself copies."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from tests.bits import assert_same_bits, order_sensitive
from tests.passes.tables import check_left_alone, check_rewritten, op_names, traced

PADS = {1: (2, 1), 2: (2, 1, 0, 3), 3: (2, 1, 0, 3, 1, -1)}
INPUTS = {1: torch.randn(3, 2, 7), 2: torch.randn(2, 3, 5, 6), 3: torch.randn(2, 2, 4, 3, 5)}


def gradient(dims, mode="replicate"):
    def run(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(F.pad(leaf, PADS[dims], mode=mode).square().sum() / 8, leaf)

    return run


@pytest.mark.parametrize("dims", PADS)
def test_is_rewritten(dims):
    check_rewritten(gradient(dims), (INPUTS[dims],), {"bi_compile.scatter_reduce"})
    assert not any("pad" in op and "backward" in op for op in op_names(traced(gradient(dims), INPUTS[dims])))


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular", "constant"])
def test_is_left_alone(mode):
    check_left_alone(lambda x: F.pad(x, (2, 1), mode=mode), (INPUTS[1],))


def test_compiled_for_any_batch():
    torch.compiler.reset()
    x = order_sensitive(7, 2, 9)

    def padded(x):
        return torch.cat([F.pad(y, (3, 2), mode="replicate").float() for y in (x, x.bfloat16())], 1)

    sent = order_sensitive(7, 4, 14)

    def gradient_of(function, part):
        leaf = x[part].clone().requires_grad_()
        function(leaf).backward(sent[part])
        assert leaf.grad is not None
        return leaf.grad

    with bi_compile.eager():
        want = gradient_of(padded, slice(None))
    compiled = torch.compile(padded, backend="batch_invariant", fullgraph=True)
    for part in slice(0, 7), slice(2, 5):
        assert_same_bits(gradient_of(compiled, part), want[part])
