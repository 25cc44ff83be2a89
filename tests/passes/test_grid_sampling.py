"""grid_sample: gradients, and volumes, have one order of additions, whatever else is in the batch."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from tests.bits import order_sensitive
from tests.passes.tables import (
    check_any_batch,
    check_left_alone,
    check_rewritten,
    check_stock_graphs_round_anew,
    op_names,
    traced,
)

IMAGES, GRID = torch.randn(2, 3, 6, 5), torch.rand(2, 4, 7, 2) * 3 - 1.5
VOLUMES, PLACES = torch.randn(2, 3, 4, 5, 6), torch.rand(2, 2, 4, 3, 3) * 3 - 1.5

FORMS = {
    f"{mode}, {padding}, align_corners={align}, {dims} dims": (mode, padding, align, dims)
    for mode, padding, align, dims in (
        ("bilinear", "zeros", True, 2),
        ("bilinear", "border", False, 2),
        ("bilinear", "reflection", True, 2),
        ("bilinear", "reflection", False, 2),
        ("nearest", "zeros", False, 2),
        ("nearest", "reflection", True, 2),
        ("bicubic", "zeros", False, 2),
        ("bicubic", "border", True, 2),
        ("bicubic", "reflection", False, 2),
        ("bilinear", "zeros", False, 3),
        ("bilinear", "reflection", True, 3),
        ("nearest", "border", True, 3),
    )
}


def gradients(mode, padding, align):
    def run(x, grid):
        with torch.enable_grad():
            leaves = x.detach().requires_grad_(), grid.detach().requires_grad_()
            out = F.grid_sample(leaves[0], leaves[1], mode=mode, padding_mode=padding, align_corners=align)
            return out, *torch.autograd.grad(out.square().sum() / 8, leaves)

    return run


@pytest.mark.parametrize("name", FORMS)
def test_is_rewritten(name):
    *form, dims = FORMS[name]
    inputs = (IMAGES, GRID) if dims == 2 else (VOLUMES, PLACES)
    check_rewritten(gradients(*form), inputs, {"bi_compile.scatter_reduce"})
    assert not any("grid_sampler" in op for op in op_names(traced(gradients(*form), *inputs)))


def test_is_left_alone():
    check_left_alone(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), (torch.randn(1, 4, 2, 2),))


def test_one_gradient_alone():
    for wanted in range(2):
        leaves = [x.clone().requires_grad_(i == wanted) for i, x in enumerate((IMAGES, GRID))]
        with bi_compile.eager():
            F.grid_sample(leaves[0], leaves[1], align_corners=True).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [wanted == 0, wanted == 1]


def test_places_that_are_no_numbers_read_nothing_and_do_not_leak():
    grid = GRID.clone()
    grid[0, 0, 0], grid[0, 1, 1] = torch.nan, torch.inf
    x = IMAGES.clone().requires_grad_()
    with bi_compile.eager():
        F.grid_sample(x, grid, align_corners=True).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def _sampled(x):
    """Images in fp32 and a volume in bf16, sampled where the sample itself says."""
    images, volume = x.reshape(-1, 2, 6, 6), x.reshape(-1, 2, 2, 6, 3).bfloat16()
    grid = x[:, :30].reshape(-1, 3, 5, 2).sin() * 1.2
    places = x[:, :30].reshape(-1, 1, 2, 5, 3).sin().bfloat16()
    sampled = (
        F.grid_sample(images, grid, padding_mode="border", align_corners=True),
        F.grid_sample(volume, places, align_corners=False),
    )
    return torch.cat([s.flatten(1).float() for s in sampled], 1)


def test_compiled_for_any_batch():
    check_any_batch(_sampled, order_sensitive(7, 72))


def test_control_stock_graphs_and_stock_eager_do_not_agree():
    check_stock_graphs_round_anew(_sampled, 7, 72)
