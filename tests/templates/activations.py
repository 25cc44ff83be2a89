"""Activations, and what else follows on products, for tests of epilogues."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "leaky relu": F.leaky_relu,
    "relu squared": lambda x: F.relu(x).square(),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu of GPT-2": lambda x: (
        0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))
    ),
    "hardswish": F.hardswish,
    "elu": F.elu,
    "mish": F.mish,
    "softplus": F.softplus,
}
WITH_ANOTHER: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda x, other: x + other,
    "gated": lambda x, other: F.silu(other) * x,
    "gate": lambda x, other: F.gelu(x) * other,
}


OF_HALVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gated halves": lambda left, right: F.silu(left) * right,
    "gate behind": lambda left, right: left * F.gelu(right, approximate="tanh"),
}


@functools.cache
def programs(dtype: torch.dtype) -> dict[str, str]:
    """Their programs as final graphs hold them, for products in a dtype."""
    return {name: _program(name, dtype) for name in (*ACTIVATIONS, *WITH_ANOTHER)}


@functools.cache
def programs_of_halves(dtype: torch.dtype) -> dict[str, str]:
    """Likewise, of products that are cut in two."""
    return {name: _program(name, dtype) for name in OF_HALVES}


def _program(name: str, dtype: torch.dtype) -> str:
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    from bi_compile.passes.epilogue import join_products_and_epilogues
    from bi_compile.pipeline import decompositions

    def function(x: Tensor, w: Tensor, *more: Tensor) -> Tensor:
        if name in OF_HALVES:
            return OF_HALVES[name](*(x @ w).chunk(2, dim=-1))
        return {**ACTIVATIONS, **WITH_ANOTHER}[name](x @ w, *more)

    with FakeTensorMode():
        x, w, other = (torch.empty(8, 8, dtype=dtype, device="cuda") for _ in range(3))
        more = (other,) if name in WITH_ANOTHER else ()
        graph = make_fx(function, decomposition_table=decompositions())(x, w, *more).graph
        assert join_products_and_epilogues(graph), name
    (joined,) = graph.find_nodes(op="call_function", target=torch.ops.bi_compile.product_epilogue.default)
    program = joined.args[4]
    assert isinstance(program, str)
    return program
