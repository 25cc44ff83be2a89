"""Windows of signal processing -> one formula in fp64, rounded at the end.

Eager kernels compute them in the dtype of the result, with the host's vector functions.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from bi_compile.passes.rewrite import FLOATING, Rewrite, rewrite

aten = torch.ops.aten
Tensor = torch.Tensor


def _window(name: str, *overloads: str) -> Callable[[Callable[..., Any]], tuple[Rewrite, ...]]:
    """Decorator for the values of a window at its places: fp64, counted from 0 to `last`."""

    def wrap(values: Callable[..., Tensor]) -> tuple[Rewrite, ...]:
        @rewrite(*(getattr(getattr(aten, name), overload) for overload in overloads))
        def build(
            length: int,
            periodic: bool = True,
            *parameters: float,
            dtype: torch.dtype | None = None,
            device: Any = None,
            **options: Any,
        ) -> Any:
            dtype = dtype or torch.get_default_dtype()
            if dtype not in FLOATING:
                return NotImplemented
            if length < 2:
                return torch.ones(length, dtype=dtype, device=device)
            places = torch.arange(length, device=device).to(torch.float64)
            named = {key: value for key, value in options.items() if key in ("alpha", "beta")}
            x = values(places, length - 1 + periodic, *parameters, **named)
            # By way of fp32 where hosts disagree about a direct conversion.
            return (x.to(torch.float32) if dtype in (torch.bfloat16, torch.float16) else x).to(dtype)

        return build

    return wrap


@_window("hamming_window", "default", "periodic", "periodic_alpha", "periodic_alpha_beta")
def _hamming(n: Tensor, last: int, alpha: float = 0.54, beta: float = 0.46) -> Tensor:
    return alpha - beta * torch.cos(n * (2 * math.pi / last))


@_window("blackman_window", "default", "periodic")
def _blackman(n: Tensor, last: int) -> Tensor:
    angle = n * (2 * math.pi / last)
    return 0.42 - 0.5 * torch.cos(angle) + 0.08 * torch.cos(angle * 2)


@_window("bartlett_window", "default", "periodic")
def _bartlett(n: Tensor, last: int) -> Tensor:
    return 1 - (n * (2 / last) - 1).abs()


@_window("kaiser_window", "default", "periodic", "beta")
def _kaiser(n: Tensor, last: int, beta: float = 12.0) -> Tensor:
    x = n * (2 / last) - 1
    terms = int(abs(beta)) + 30  # from the beta-th on, each is less than a quarter of the one before
    scale = beta * beta / 4
    return _bessel((1 - x * x) * scale, terms) / _bessel(scale, terms)


def _bessel(quarter: Any, terms: int) -> Any:
    """I0(x) of x*x/4 by its series, from the last term on: all are positive, so nothing cancels."""
    total = quarter * 0 + 1
    for k in range(terms, 0, -1):
        total = total * (quarter * (1 / (k * k))) + 1
    return total


REWRITES = (*_hamming, *_blackman, *_bartlett, *_kaiser)
