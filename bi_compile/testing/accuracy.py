"""The correctness partner: a kernel that drops the bias is perfectly invariant."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bi_compile.testing.batches import Pool
from bi_compile.testing.in_double import in_double
from bi_compile.testing.messages import VacuousCheckError
from bi_compile.testing.outputs import Outputs, copied


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
    alone: list[Outputs],
    *,
    reference: Callable[..., Any],
    stock: Callable[..., Any],
) -> Accuracy:
    """Errors of the results `alone` and of `stock` against `reference` run in float64, sample by sample.

    A module is copied and cast; any other callable gets float64 inputs and must compute in their dtype. Casts
    to fp32 within are casts to float64 there (`in_double`).
    Outputs are matched by their names, or by their places where the other callable has another container.
    An element counts where stock is finite if the reference is: the results must be, too.

    Raises ValueError where the outputs cannot be matched, VacuousCheckError where none of them counts.
    """
    exact = in_double(reference)
    errors: dict[str, list[torch.Tensor]] = {}
    stock_errors: dict[str, list[torch.Tensor]] = {}
    largest: dict[str, float] = {}
    dtypes: dict[str, torch.dtype] = {}
    for sample, ours in enumerate(alone):
        inputs = pool.take(pool.alone(sample))
        with torch.no_grad():
            wanted = _matched(ours, exact(*inputs), "the reference")
            theirs = _matched(ours, stock(*inputs), "the control")
        for name, value in ours.items():
            if not _counts(value):
                continue
            value, want, other = _real(value), _real(wanted[name]), _real(theirs[name])
            if want.shape != other.shape:
                raise ValueError(
                    f"{name} of the reference has shape {tuple(want.shape)}, of stock {tuple(other.shape)}"
                )
            counts = want.isfinite() == other.isfinite()
            dtypes[name] = ours[name].dtype
            errors.setdefault(name, []).append(_differences(value, want, counts))
            stock_errors.setdefault(name, []).append(_differences(other, want, counts))
            finite = want[want.isfinite()]
            largest[name] = max(largest.get(name, 0.0), float(finite.abs().max()) if finite.numel() else 0.0)
    if not any(part.numel() for parts in stock_errors.values() for part in parts):
        raise VacuousCheckError(
            "no output could be compared with the reference",
            details=[f"floating-point outputs: {', '.join(stock_errors) or 'none'}"],
            hint="the reference must be finite somewhere, and stock there, too.",
        )
    rounding = {name: torch.finfo(dtypes[name]).eps * value / 2 for name, value in largest.items()}
    return Accuracy(
        _root_mean_squares(errors),
        _root_mean_squares(stock_errors),
        _largest(errors),
        _largest(stock_errors),
        rounding,
    )


def _matched(ours: Outputs, returned: Any, whose: str) -> Outputs:
    """What was returned, under the names of our outputs."""
    theirs, _ = copied(returned)
    if all(name in theirs for name in ours if _counts(ours[name])):
        return theirs
    if len(ours) == len(theirs):
        return dict(zip(ours, theirs.values(), strict=True))
    raise ValueError(
        f"the outputs cannot be matched: fn returns {_listed(ours)}, {whose} returns {_listed(theirs)}"
    )


def _counts(x: torch.Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _listed(outputs: Outputs) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "no tensor"


def _real(x: torch.Tensor) -> torch.Tensor:
    """In float64, complex numbers as pairs."""
    return (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).double()


def _differences(value: torch.Tensor, want: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Of the elements that count and are finite in the reference; infinite where the two are not alike."""
    if value.shape != want.shape:
        return torch.tensor([float("inf")], dtype=torch.float64)
    finite = want.isfinite()
    alike = value.isfinite() == finite
    return torch.where(alike, value - want, float("inf"))[counts & (finite | ~alike)]


def _largest(differences: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    every = {name: torch.cat(parts) for name, parts in differences.items()}
    return {name: float(d.abs().max()) if d.numel() else 0.0 for name, d in every.items()}


def _root_mean_squares(differences: dict[str, list[torch.Tensor]]) -> dict[str, float]:
    every = {name: torch.cat(parts) for name, parts in differences.items()}
    return {name: float(d.square().mean().sqrt()) if d.numel() else 0.0 for name, d in every.items()}
