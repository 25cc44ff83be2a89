"""Gradients of padding have one order, in graphs and outside; padding itself copies."""

import pytest
import torch
import torch.nn.functional as F

from tests.bits import order_sensitive
from tests.passes.tables import check_any_batch, check_left_alone, check_rewritten, op_names, traced

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


def _padded(x):
    return torch.cat([F.pad(y, (3, 2), mode="replicate").float() for y in (x, x.bfloat16())], 1)


def test_compiled_for_any_batch():
    """Stock PyTorch's own gradient has one order, too, on the CPU: there is no control."""
    check_any_batch(_padded, order_sensitive(7, 2, 9))
