"""The correctness partner: a kernel that drops the bias is perfectly invariant."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bi_compile.testing.batches import Pool
from bi_compile.testing.trees import leaves, map_tensors


@dataclass(frozen=True)
class Accuracy:
    """Largest absolute errors against float64 over all samples, by output."""

    errors: dict[str, float]
    stock_errors: dict[str, float]
    ulps: dict[str, float]
    """One ulp of the largest value of each output, in the output's own dtype."""


def measure_accuracy(
    pool: Pool,
    alone: list[dict[str, torch.Tensor]],
    *,
    reference: Callable[..., Any],
    stock: Callable[..., Any],
) -> Accuracy:
    """Errors of the results `alone` and of `stock` against `reference` run in float64, sample by sample.

    A module is copied and cast; any other callable gets float64 inputs and must compute in their dtype.
    Where the reference is not finite, the results must not be either; such elements count no further.
    """
    exact = _in_double(reference)
    errors: dict[str, float] = {}
    stock_errors: dict[str, float] = {}
    largest: dict[str, float] = {}
    dtypes: dict[str, torch.dtype] = {}
    for sample, ours in enumerate(alone):
        inputs = pool.take(pool.alone(sample))
        with torch.no_grad():
            wanted = dict(leaves(exact(*map_tensors(inputs, _double)), "output"))
            theirs = dict(leaves(stock(*inputs), "output"))
        for name, value in ours.items():
            want = wanted.get(name)
            if not value.is_floating_point() or not isinstance(want, torch.Tensor):
                continue
            dtypes[name] = value.dtype
            errors[name] = max(errors.get(name, 0.0), _error(value, want))
            stock_errors[name] = max(stock_errors.get(name, 0.0), _error(theirs[name], want))
            finite = want[want.isfinite()]
            largest[name] = max(largest.get(name, 0.0), float(finite.abs().max()) if finite.numel() else 0.0)
    one_ulp = {name: torch.finfo(dtypes[name]).eps * value for name, value in largest.items()}
    return Accuracy(errors, stock_errors, one_ulp)


def _in_double(reference: Callable[..., Any]) -> Callable[..., Any]:
    return copy.deepcopy(reference).double() if isinstance(reference, torch.nn.Module) else reference


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _error(value: torch.Tensor, want: torch.Tensor) -> float:
    if value.shape != want.shape:
        return float("inf")
    value = value.detach().double()
    finite = want.isfinite()
    if bool((value.isfinite() != finite).any()):
        return float("inf")
    difference = (value - want)[finite].abs()
    return float(difference.max()) if difference.numel() else 0.0
