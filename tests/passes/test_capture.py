"""linear and attention are caught whole, in graphs and in eager calls, also under autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import bi_compile
from bi_compile.passes.capture import capture
from tests.bits import assert_same_bits

X, W, B = torch.randn(3, 4, 8), torch.randn(5, 8), torch.randn(5)
Q = torch.randn(2, 3, 6, 8)

CAPTURED = {
    "linear": (lambda x: F.linear(x, W, B), X, "differentiable_linear"),
    "linear without bias": (lambda x: F.linear(x, W), X, "differentiable_linear"),
    "attention": (lambda q: F.scaled_dot_product_attention(q, q, q), Q, "differentiable_attention"),
    "attention, causal": (
        lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3),
        Q,
        "differentiable_attention",
    ),
}


@pytest.mark.parametrize("name", CAPTURED)
def test_is_captured(name):
    fn, x, op = CAPTURED[name]
    graph = fx.symbolic_trace(fn)
    capture(graph)
    assert any(op in str(node.target) for node in graph.graph.nodes)
    with bi_compile.eager():
        assert_same_bits(fn(x), graph(x))
        assert_same_bits(fn(x[:1]), graph(x)[:1])
    torch.testing.assert_close(graph(x).double(), fn(x).double(), rtol=1e-4, atol=1e-5)


def test_other_calls_are_left_alone():
    graph = fx.symbolic_trace(lambda x: F.gelu(x) @ W.t())
    before = graph.code
    capture(graph)
    assert graph.code == before


def test_nested_graphs_are_captured_too():
    inner = fx.symbolic_trace(CAPTURED["linear"][0])
    outer = fx.Graph()
    outer.output(outer.call_module("inner", (outer.placeholder("x"),)))
    capture(fx.GraphModule({"inner": inner}, outer))
    assert any("differentiable_linear" in str(node.target) for node in inner.graph.nodes)


@pytest.mark.parametrize("name", ["linear", "attention"])
def test_autocast_computes_in_its_dtype(name):
    fn, x, _ = CAPTURED[name]
    with torch.autocast("cpu", dtype=torch.bfloat16), bi_compile.eager():
        out = fn(x)
        alone = fn(x[:1])
    assert out.dtype == torch.bfloat16
    assert_same_bits(alone, out[:1])


def test_gradients_flow():
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    with bi_compile.eager():
        F.linear(x, w, B).square().sum().backward()
    exact_x, exact_w = X.double().requires_grad_(), W.double().requires_grad_()
    F.linear(exact_x, exact_w, B.double()).square().sum().backward()
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w.grad.double(), exact_w.grad, rtol=1e-4, atol=1e-4)
