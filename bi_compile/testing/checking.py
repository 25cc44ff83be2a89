"""Does a random model give each sample its bits in every batch? A failure comes with a program."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bi_compile.errors import UnsupportedDtypeError, UnsupportedOpError
from bi_compile.testing.bits import differing, ulps
from bi_compile.testing.messages import BatchVarianceError, InaccurateResultError
from bi_compile.testing.op_tables import ROUGH
from bi_compile.testing.outputs import apart, shown
from bi_compile.testing.random_models import SAMPLES, RandomModel
from bi_compile.testing.scripts import script_of

BATCHES = (
    ((1, 0), None),
    ((4, 0, 3, 1, 2), float("nan")),
    ((2, 2, 1, 0, 4, 3, 1, 0, 0, 3, 4, 4, 1, 2, 3, 0, 2), None),
)
"""Which samples share a batch, and what fills the odd positions instead; one graph serves them all."""

Run = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Outcome:
    """What became of a model that did not fail.

    what: "same" where all rows were equal; "vacuous" where all samples have one result, so that nothing was
        shown; "refused" where the backend named an op it does not take; "invalid" where stock PyTorch cannot
        run the model, for example because it has no kernel for a dtype.
    why: the first line of the error, if there was one.
    """

    what: str
    why: str = ""


def check_model(
    model: RandomModel, *, backend: str = "batch_invariant", gradients: bool = False, alone: bool = False
) -> Outcome:
    """Assert that every sample has the same bits alone and in batches, with hostile neighbours, too.

    backend: one of torch.compile, "eager" for the module as it is, or "canonical" for it under
        `bi_compile.eager()`, which compiles nothing and is fast.
    gradients: compare the gradient of the input, too; the graph is then one for training.
    alone: compile the graph of one sample, too. Otherwise, under "batch_invariant", the results alone are
        those of `bi_compile.eager()`: the one compiled graph must have their bits.

    Our results are also compared with float64, within ten times the error of stock.
    Raises BatchVarianceError or InaccurateResultError; whatever is raised has a note, a program that shows
    the failure by itself.
    """
    try:
        return _checked(model, backend, gradients, alone)
    except Exception as failure:
        place = failure.place if isinstance(failure, _Differs) else None
        error = failure.error if isinstance(failure, _Differs) else failure
        error.add_note(script_of(model, backend=backend, gradients=gradients, failure=error, place=place))
        raise error from None


class _Differs(Exception):
    def __init__(self, error: BatchVarianceError, place: tuple[tuple[int, ...], int, float | None]) -> None:
        self.error, self.place = error, place


def _checked(model: RandomModel, backend: str, gradients: bool, alone: bool) -> Outcome:
    if gradients and backend == "batch_invariant" and any(name == "outside" for name, _ in model.steps):
        return Outcome("refused", "gradients of code outside graphs are stock PyTorch's")
    module, pool = model.module(), model.inputs(SAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = _runner(module, gradients)
        try:
            plain = stock(pool)[0]
        except Exception as error:
            return Outcome("invalid", _first_line(error))
        run = _run_by(module, backend, gradients)
        try:
            together = run(pool[list(BATCHES[0][0])])
            single = _alone(module, run, pool, backend, gradients, alone)
            _compare(run, pool, single, together)
        except Exception as error:
            refusal = getattr(error, "inner_exception", error)
            if isinstance(refusal, UnsupportedOpError | UnsupportedDtypeError):
                return Outcome("refused", _first_line(refusal))
            raise
        if backend in ("batch_invariant", "canonical") and not ROUGH.intersection(
            name for name, _ in model.steps
        ):
            _require_accurate(module, pool, [rows[0] for rows in single], plain)
    first = [rows[0] for rows in single]
    if not any(bool(differing(first[0], other).any()) for other in first[1:]):
        return Outcome("vacuous")
    return Outcome("same")


def _runner(fn: Callable[[torch.Tensor], torch.Tensor], gradients: bool) -> Run:
    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if not gradients:
            with torch.no_grad():
                return (_one_nan(fn(x)),)
        x = x.clone().requires_grad_()
        y = fn(x)
        if not y.requires_grad:
            return (_one_nan(y.detach()),)
        return _one_nan(y.detach()), *map(_one_nan, torch.autograd.grad(y, x, y.detach()))

    return run


def _run_by(module: torch.nn.Module, backend: str, gradients: bool) -> Run:
    if backend == "eager":
        return _runner(module, gradients)
    if backend != "canonical":
        return _runner(torch.compile(module, backend=backend), gradients)
    import bi_compile

    return bi_compile.eager()(_runner(module, gradients))


def _one_nan(x: torch.Tensor) -> torch.Tensor:
    """A copy in which every NaN has the same bits: compilers give them different signs."""
    return torch.where(x.isnan(), torch.full_like(x, torch.nan), x)


def _alone(
    module: torch.nn.Module, run: Run, pool: torch.Tensor, backend: str, gradients: bool, alone: bool
) -> list[tuple[torch.Tensor, ...]]:
    """The results of each sample by itself."""
    rows = [pool[i : i + 1] for i in range(SAMPLES)]
    if backend != "batch_invariant" or alone:
        return [run(row) for row in rows]
    import bi_compile

    try:
        with bi_compile.eager():
            return [_runner(module, gradients)(row) for row in rows]
    except UnsupportedOpError:  # what runs sample by sample does so in graphs alone
        return [run(row) for row in rows]


def _compare(
    run: Run, pool: torch.Tensor, single: list[tuple[torch.Tensor, ...]], first: tuple[torch.Tensor, ...]
) -> None:
    for members, hostile in BATCHES:
        kept = range(0, len(members), 1 if hostile is None else 2)
        if (members, hostile) != BATCHES[0]:
            batch = pool[list(members)].clone()
            if hostile is not None:
                batch[1::2] = hostile
            first = run(batch)
        for place in kept:
            for what, got, want in zip(
                ("the output", "the gradient"), first, single[members[place]], strict=False
            ):
                if got.shape[0] != len(members) or got.dtype != want.dtype or got.shape[1:] != want.shape[1:]:
                    raise AssertionError(
                        f"{what} has another form in the batch: {got.shape}, alone {want.shape}"
                    )
                if differing(got[place], want[0]).any():
                    raise _Differs(
                        _variance(what, got[place], want[0], members, place, hostile),
                        (members, place, hostile),
                    )


def _variance(
    what: str,
    got: torch.Tensor,
    want: torch.Tensor,
    members: tuple[int, ...],
    place: int,
    hostile: float | None,
) -> BatchVarianceError:
    differ = differing(got, want)
    at = tuple(differ.nonzero()[0].tolist()) if differ.dim() else ()
    others = "" if hostile is None else f", every second one of which is all {hostile}"
    return BatchVarianceError(
        f"{what} of sample {members[place]} changes with the batch",
        details=[
            f"at position {place} of samples {members}{others}",
            f"first difference at {list(at)}: alone {shown(want[at])}, in the batch {shown(got[at])}"
            f"{apart(ulps(want, got)[at])}; {int(differ.sum())} of {want.numel()} elements differ",
        ],
        hint="run the program below.",
    )


def _require_accurate(
    module: torch.nn.Module, pool: torch.Tensor, ours: list[torch.Tensor], stock: torch.Tensor
) -> None:
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(pool.double())
    finite = exact.isfinite() & stock.isfinite()
    got = torch.cat(ours)
    if not bool(finite.any()) or got.dtype == torch.float64:
        return
    errors = [(x.double() - exact)[finite].square().mean().sqrt().item() for x in (got, stock)]
    largest = exact[finite].abs().max().item()
    allowed = 10 * errors[1] + torch.finfo(got.dtype).eps * largest
    if not (errors[0] <= allowed or math.isnan(errors[1])):
        raise InaccurateResultError(
            "the output is farther from float64 than stock PyTorch's",
            details=[
                f"root mean square error {errors[0]:.3g}, stock's {errors[1]:.3g}, allowed {allowed:.3g}"
            ],
            hint="the results are invariant but wrong: look for a missing term or a lower precision.",
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
