"""The chains of the scans in plain torch operations: slow, and equal to the kernels bit for bit.

exp and log1p are arguments, so that a test can pass the ones the kernels use.
"""

from collections.abc import Callable

import torch

from bi_compile.templates.reduction.oracle import rounded
from bi_compile.templates.reduction.shapes import acc_dtype

Function = Callable[[torch.Tensor], torch.Tensor]


def chain(x: torch.Tensor, dim: int, identity: float, step: Callable) -> torch.Tensor:
    """The states of a chain along dim, each rounded to x's dtype."""
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    lines = x.to(acc_dtype(x.dtype)).reshape(x.shape or (1,)).movedim(dim, 0)
    state, states = torch.full_like(lines[0], identity), []
    for element in lines:
        state = step(state, element)
        states.append(state)
    return rounded(torch.stack(states).movedim(0, dim).reshape(x.shape), x.dtype)


def cumsum(x: torch.Tensor, dim: int) -> torch.Tensor:
    return chain(x, dim, 0.0, torch.add)


def cumprod(x: torch.Tensor, dim: int) -> torch.Tensor:
    return chain(x, dim, 1.0, torch.mul)


def logcumsumexp(
    x: torch.Tensor, dim: int, exp: Function = torch.exp, log1p: Function = torch.log1p
) -> torch.Tensor:
    def step(state: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
        larger = torch.where(state > element, state, element)
        total = larger + log1p(exp(-(state - element).abs()))
        return torch.where((state == element) & state.isinf(), larger, total)

    return chain(x, dim, -torch.inf, step)
