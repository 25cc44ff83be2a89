"""What a rewrite is: an ATen op and how it is built from canonical ops."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes templates compute in."""


@dataclass(frozen=True)
class Rewrite:
    """Replaces calls of `op` by what `build` returns for the same arguments.

    `build` sees fake or real tensors, uses canonical ops and pointwise ATen ops alone, and returns
    NotImplemented for calls that need no rewriting (integers).
    """

    op: torch._ops.OpOverload
    build: Callable[..., Any]


def rewrite(*ops: torch._ops.OpOverload) -> Callable[[Callable[..., Any]], tuple[Rewrite, ...]]:
    """Decorator: the function below builds each of `ops`; the name becomes the tuple of its rewrites."""

    def wrap(build: Callable[..., Any]) -> tuple[Rewrite, ...]:
        return tuple(Rewrite(op, build) for op in ops)

    return wrap


def integers_first(op: torch._ops.OpOverload) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator for the build of a sum or product with a `dtype`: where that holds integers, nothing rounds.

    Floating values become integers before they are added, as in eager PyTorch.
    """

    def wrap(build: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(build)
        def choose(x: torch.Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
            exact = dtype is not None and not (dtype.is_floating_point or dtype.is_complex)
            if exact and (x.dtype.is_floating_point or x.dtype.is_complex):
                return op(x.to(dtype), *args, dtype=dtype, **kwargs)
            return build(x, *args, dtype=dtype, **kwargs)

        return choose

    return wrap


def is_floating(x: torch.Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether a reduction of `x` in `dtype` rounds, and so needs an order."""
    return (dtype or x.dtype) in FLOATING


def all_dims(x: torch.Tensor) -> list[int]:
    return list(range(x.dim()))


def opmath(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that an op on it computes in: fp32 for bf16 and fp16."""
    return x.to(torch.float32) if x.dtype in (torch.bfloat16, torch.float16) else x
