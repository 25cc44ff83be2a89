"""What the tests of the passes share: a call, the canonical ops it becomes, and what they must compute."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import bi_compile
from bi_compile.pipeline import decompositions
from tests.bits import assert_same_bits, order_sensitive

Call = Callable[..., Any]


def traced(fn: Call, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    """`fn` as ATen ops, rewritten by the table that compiled graphs use."""
    return make_fx(fn, decomposition_table=decompositions(), tracing_mode="fake")(*inputs)


def op_names(graph: torch.fx.GraphModule) -> set[str]:
    return {str(n.target).removesuffix(".default") for n in graph.graph.nodes if n.op == "call_function"}


def check_rewritten(fn: Call, inputs: tuple[torch.Tensor, ...], ops: set[str]) -> None:
    """The traced call holds `ops`; eager mode gives the bits of the traced graph, close to float64."""
    graph = traced(fn, *inputs)
    assert ops <= op_names(graph), op_names(graph)
    with bi_compile.eager():
        outputs = tree_leaves(fn(*inputs))
        for got, want in zip(outputs, tree_leaves(graph(*inputs)), strict=True):
            assert_same_bits(got, want)
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    for got, exact in zip(outputs, tree_leaves(fn(*wide)), strict=True):
        exact = exact.detach().double()
        # Of a result that cancels, the error is one of its largest elements.
        largest = exact[exact.isfinite()].abs().amax() if exact.isfinite().any() else 0
        torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-5 * max(1, float(largest)))


def check_left_alone(fn: Call, inputs: tuple[torch.Tensor, ...]) -> None:
    """No canonical op is put in, and the result is the stock one."""
    assert not any(name.startswith("bi_compile") for name in op_names(traced(fn, *inputs)))
    with bi_compile.eager():
        outputs = tree_leaves(fn(*inputs))
    for got, want in zip(outputs, tree_leaves(fn(*inputs)), strict=True):
        assert torch.equal(got, want)


def with_gradient(fn: Call, x: torch.Tensor, sent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fn(x), and the gradient of x of what is sent back."""
    leaf = x.clone().requires_grad_()
    out = fn(leaf)
    out.backward(sent)
    assert leaf.grad is not None
    return out.detach(), leaf.grad


def check_any_batch(fn: Call, x: torch.Tensor, *, alone: bool = False) -> None:
    """fn(x) and its gradient, compiled, of all of x and of some: the bits that eager mode gives all of x.

    x: [7, ...] or more; fn: one tensor of it. alone: of a sample alone, too, which has a graph of its own.
    """
    torch.compiler.reset()
    sent = order_sensitive(*fn(x).shape)
    with bi_compile.eager():
        want = with_gradient(fn, x, sent)
    compiled = torch.compile(fn, backend="batch_invariant", fullgraph=True)
    for part in slice(None), slice(2, 5), *[slice(6, 7)] * alone:
        for got, whole in zip(with_gradient(compiled, x[part], sent[part]), want, strict=True):
            assert_same_bits(got, whole[part])


def check_stock_graphs_round_anew(fn: Call, *shape: int) -> None:
    """Control: of neither fn(x) nor its gradient have stock graphs the bits of stock eager mode."""
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(0)
    x = order_sensitive(*shape, generator=generator)
    sent = order_sensitive(*fn(x).shape, generator=generator)
    for graph, eager in zip(
        with_gradient(torch.compile(fn), x, sent), with_gradient(fn, x, sent), strict=True
    ):
        assert not torch.equal(graph, eager)
