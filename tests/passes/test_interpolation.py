"""Interpolation has one forward and one gradient: compiled, outside graphs and in any batch."""

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
)

X1, X2, X3 = torch.randn(3, 2, 9), torch.randn(2, 3, 9, 7), torch.randn(2, 2, 3, 5, 4)

FORMS = {
    "nearest": (X2, {"scale_factor": 1.7, "mode": "nearest"}),
    "nearest, smaller": (X1, {"size": 4, "mode": "nearest"}),
    "nearest of three dims": (X3, {"size": (4, 3, 9), "mode": "nearest"}),
    "nearest-exact": (X2, {"size": (5, 13), "mode": "nearest-exact"}),
    "linear": (X1, {"scale_factor": 2.3, "mode": "linear"}),
    "linear to one": (X1, {"size": 1, "mode": "linear", "align_corners": True}),
    "bilinear": (X2, {"scale_factor": 2, "mode": "bilinear"}),
    "bilinear, factors recomputed": (
        X2,
        {"scale_factor": (0.6, 1.3), "mode": "bilinear", "recompute_scale_factor": True},
    ),
    "bilinear, corners aligned": (X2, {"size": (4, 15), "mode": "bilinear", "align_corners": True}),
    "trilinear": (X3, {"size": (6, 3, 7), "mode": "trilinear"}),
    "bicubic": (X2, {"scale_factor": 1.5, "mode": "bicubic"}),
    "bicubic, corners aligned": (X2, {"size": (12, 5), "mode": "bicubic", "align_corners": True}),
    "area": (X2, {"size": (4, 5), "mode": "area"}),
    "antialiased": (X2, {"size": (4, 5), "mode": "bilinear", "antialias": True}),
    "antialiased, one dim larger": (X2, {"size": (3, 11), "mode": "bilinear", "antialias": True}),
    "antialiased, bicubic": (X2, {"scale_factor": 0.45, "mode": "bicubic", "antialias": True}),
}


def gradient(form):
    def run(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            out = F.interpolate(leaf, **form)
            return out, *torch.autograd.grad(out.square().sum(), leaf)

    return run


@pytest.mark.parametrize("name", FORMS)
def test_is_rewritten(name):
    x, form = FORMS[name]
    check_rewritten(gradient(form), (x,), set())


@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("nearest")])
def test_is_left_alone(name):
    x, form = FORMS[name]
    check_left_alone(lambda x: F.interpolate(x, **form), (x,))


def test_a_kernel_does_not_read_beyond_its_ends():
    x = X2.clone()
    x[0, 0, 0, 0] = torch.inf
    with bi_compile.eager():
        got = F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True)
    stock = F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True)
    assert torch.equal(got.isfinite(), stock.isfinite())


@pytest.mark.parametrize(
    "form",
    [
        {"size": 4, "scale_factor": 2},
        {},
        {"size": (4, 5, 6)},
        {"size": 4, "align_corners": True},
        {"mode": "cubist"},
    ],
)
def test_what_is_wrong_has_the_error_of_stock(form):
    with pytest.raises((ValueError, NotImplementedError)) as stock:
        F.interpolate(X2, **form)
    with bi_compile.eager(), pytest.raises(type(stock.value)) as ours:
        F.interpolate(X2, **form)
    assert str(ours.value) == str(stock.value)


def _resized(x):
    """One image in several forms and dtypes, and the image itself once more."""
    y = x.reshape(-1, 2, 5, 6)
    outs = (
        F.interpolate(y, scale_factor=2, mode="bilinear"),
        F.interpolate(y.bfloat16(), size=(4, 9), mode="bilinear", align_corners=True),
        torch.nn.Upsample(scale_factor=1.6, mode="nearest-exact")(y),
        F.interpolate(y, size=(3, 4), mode="bilinear", antialias=True),
        y,
    )
    return torch.cat([out.flatten(1).float() for out in outs], 1)


def test_compiled_for_any_batch():
    check_any_batch(_resized, order_sensitive(7, 60))


def test_control_stock_graphs_and_stock_eager_do_not_agree():
    check_stock_graphs_round_anew(_resized, 7, 60)
