"""Sums joined with their norms, on CUDA devices: which are, and that nothing else in the graph changes."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from bi_compile.passes.residual import join_sums_and_norms
from bi_compile.pipeline import decompositions
from bi_compile.templates import normalization as _normalization  # noqa: F401  (defines the ops)
from tests.bits import assert_same_bits

bi = torch.ops.bi_compile


def joined(function, *inputs, device: str = "cuda") -> list[str]:
    """The names of our ops and additions in the graph, after the pass."""
    with FakeTensorMode():
        fakes = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in inputs]
        graph = make_fx(function, decomposition_table=decompositions())(*fakes).graph
        join_sums_and_norms(graph)
    graph.lint()
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    # What a linear is traced as changes with the version of PyTorch.
    assert all("val" in node.meta for node in graph.nodes if node.op == "call_function")
    return [
        target.overloadpacket.__name__.replace("mm", LINEAR)
        for target in targets
        if target is not operator.getitem and (target.namespace == "bi_compile" or "add" in str(target))
    ]


X, W, V = torch.randn(3, 5, 8), torch.randn(8, 8), torch.randn(8)
LINEAR, LAYER, RMS = "linear", "added_layer_norm", "added_rms_norm"


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda x, h, w, v: bi.rms_norm(x + h, [8], v, 1e-6)[0], [RMS]),
        (lambda x, h, w, v: F.layer_norm(x + h, (8,), v, v), [LAYER]),
        (lambda x, h, w, v: F.layer_norm(F.linear(h, w).view(3, 5, 8) + x, (8,)), [LINEAR, LAYER]),
        # The sum goes on as the residual of the next layer.
        (
            lambda x, h, w, v: (y := x + F.linear(h, w)) + F.linear(F.layer_norm(y, (8,)), w),
            [LINEAR, LAYER, LINEAR, "add"],
        ),
        (
            lambda x, h, w, v: F.layer_norm((y := x + h) + F.linear(F.layer_norm(y, (8,)), w), (8,)),
            [LAYER, LINEAR, LAYER],
        ),
        # A product reads the first sum, by way of a view.
        (
            lambda x, h, w, v: F.layer_norm((y := x + h) + (y.view(-1, 8) @ w).view(3, 5, 8), (8,)),
            ["add", LINEAR, LAYER],
        ),
        # Both read one sum, which is joined with the first.
        (
            lambda x, h, w, v: (F.layer_norm(y := x + h, (8,)), F.layer_norm(y, (8,), v)),
            [LAYER, "layer_norm"],
        ),
    ],
)  # fmt: skip
def test_joined(function, ops):
    assert joined(function, X, X, W, V) == ops


@pytest.mark.parametrize(
    "function",
    [
        lambda x, h, w, v: F.layer_norm(x + v, (8,)),  # broadcast
        lambda x, h, w, v: F.layer_norm(torch.add(x, h, alpha=2), (8,)),
        lambda x, h, w, v: F.layer_norm(x + 1, (8,)),
        lambda x, h, w, v: F.layer_norm(x + h.double(), (8,)),
        lambda x, h, w, v: F.layer_norm(x + h * 2, (8,)),  # Inductor computes the term with the sum
        lambda x, h, w, v: F.layer_norm(y := x + h, (8,), y.sum((0, 1))),  # the weight is of the sum
    ],
)
def test_left_alone(function):
    assert not any("added" in op for op in joined(function, X, X, W, V))


def test_left_alone_on_the_cpu():
    assert joined(lambda x, h: F.layer_norm(x + h, (8,)), X, X, device="cpu") == ["add", "layer_norm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_joined_ops_are_both(dtype):
    x, h, w = (t.to(dtype) for t in (X, X.flip(0), V))
    total, *norm = bi.added_layer_norm(x, h, [8], w, w, 1e-5)
    assert_same_bits(total, x + h)
    for found, expected in zip(norm, bi.layer_norm(x + h, [8], w, w, 1e-5), strict=True):
        assert_same_bits(found, expected)
    total, *norm = bi.added_rms_norm(x.mT.contiguous().mT, h, [8], w, 1e-6)
    assert_same_bits(total, x + h)
    for found, expected in zip(norm, bi.rms_norm(x + h, [8], w, 1e-6), strict=True):
        assert_same_bits(found, expected)
