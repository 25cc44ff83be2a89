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
    """Root mean square errors against float64 over all samples, by output.

    Not the largest ones: the largest of a few elements is decided by luck, here and in stock PyTorch.
    """

    errors: dict[str, float]
    stock_errors: dict[str, float]
    largest: dict[str, float]
    stock_largest: dict[str, float]
    """Largest errors of either: a few wrong elements among many hardly move the mean."""
    roundings: dict[str, float]
    """Half an ulp of the largest value of each output in its own dtype: what one rounding may cost."""


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
    errors: dict[str, list[torch.Tensor]] = {}
    stock_errors: dict[str, list[torch.Tensor]] = {}
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
            errors.setdefault(name, []).append(_differences(value, want))
            stock_errors.setdefault(name, []).append(_differences(theirs[name], want))
            finite = want[want.isfinite()]
            largest[name] = max(largest.get(name, 0.0), float(finite.abs().max()) if finite.numel() else 0.0)
    rounding = {name: torch.finfo(dtypes[name]).eps * value / 2 for name, value in largest.items()}
    return Accuracy(
        _root_mean_squares(errors),
        _root_mean_squares(stock_errors),
        _largest(errors),
        _largest(stock_errors),
        rounding,
    )


def _in_double(reference: Callable[..., Any]) -> Callable[..., Any]:
    return copy.deepcopy(reference).double() if isinstance(reference, torch.nn.Module) else reference


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _differences(value: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """Of the elements that are finite in the reference; infinite where the two are not alike."""
    if value.shape != want.shape:
        return torch.tensor([float("inf")], dtype=torch.float64)
    value = value.detach().double()
    finite = want.isfinite()
    alike = value.isfinite() == finite
    return torch.where(alike, value - want, float("inf"))[finite | ~alike].double()


def _largest(differences: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    every = {name: torch.cat(parts) for name, parts in differences.items()}
    return {name: float(d.abs().max()) if d.numel() else 0.0 for name, d in every.items()}


def _root_mean_squares(differences: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    every = {name: torch.cat(parts) for name, parts in differences.items()}
    return {name: float(d.square().mean().sqrt()) if d.numel() else 0.0 for name, d in every.items()}
