"""A random model ready to be checked, and the judgement of what a backend made of its samples."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bi_compile.errors import UnsupportedDtypeError, UnsupportedOpError
from bi_compile.testing.bits import differing, ulps
from bi_compile.testing.messages import BatchVarianceError, InaccurateResultError
from bi_compile.testing.op_tables import ROUGH
from bi_compile.testing.outputs import apart, shown
from bi_compile.testing.random_models import SAMPLES, RandomModel

Place = tuple[tuple[int, ...], int, float | None]
"""The members of a batch, a position in it, and what fills the odd positions instead of samples."""

BATCHES: tuple[tuple[tuple[int, ...], float | None], ...] = (
    ((1, 0), None),
    ((4, 0, 3, 1, 2), float("nan")),
    ((2, 2, 1, 0, 4, 3, 1, 0, 0, 3, 4, 4, 1, 2, 3, 0, 2), None),
)
"""Which samples share a batch, and what fills the odd positions instead; one graph serves them all."""

Result = tuple[torch.Tensor, ...]
"""The output of a call and, where they are asked for, the gradient of its input."""
Run = Callable[[torch.Tensor], Result]


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


class RowDiffers(Exception):
    """A row has other bits in a batch than alone: the error to raise, and the place that shows it.

    outside: the results alone are those of `bi_compile.eager()`.
    """

    outside = False

    def __init__(self, error: BatchVarianceError, place: Place) -> None:
        self.error, self.place = error, place


@dataclass(frozen=True)
class Subject:
    """module: of the model. pool: its samples [SAMPLES, ...]. stock: what PyTorch makes of them."""

    model: RandomModel
    module: torch.nn.Module
    pool: torch.Tensor
    stock: torch.Tensor

    @classmethod
    def of(cls, model: RandomModel, *, gradients: bool) -> "Subject | Outcome":
        """The subject, or "invalid" where stock PyTorch cannot run the model."""
        module, pool = model.module(), model.inputs(SAMPLES)
        run = runner(module, gradients)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(pool[:1])  # a norm of one value alone is refused
                return cls(model, module, pool, run(pool)[0])
        except Exception as error:
            return Outcome("invalid", first_line(error))

    @property
    def rows(self) -> list[torch.Tensor]:
        return list(self.pool.split(1))

    def batch(self, members: Sequence[int], hostile: float | None) -> torch.Tensor:
        batch = self.pool[list(members)].clone()
        if hostile is not None:
            batch[1::2] = hostile
        return batch

    def canonical_alone(self, *, gradients: bool) -> list[Result] | None:
        """The results of each sample alone under `bi_compile.eager()`; None where that refuses an op.

        What runs sample by sample does so in graphs alone.
        """
        import bi_compile

        try:
            with bi_compile.eager():
                return [runner(self.module, gradients)(row) for row in self.rows]
        except UnsupportedOpError:
            return None

    @property
    def _rough(self) -> bool:
        """Whether a rounding may become a large difference, so that float64 tells nothing."""
        # Squares lose subnormals, and units for bf16 take them for zero, which what follows may magnify.
        return self.model.kind == "subnormal" or not ROUGH.isdisjoint(name for name, _ in self.model.steps)

    def judge(self, alone: Sequence[Result], together: Sequence[Result], *, ours: bool) -> Outcome:
        """Compare the results of BATCHES with those alone, and ours with float64.

        Raises RowDiffers or InaccurateResultError.
        """
        for (members, hostile), found in zip(BATCHES, together, strict=True):
            for place in range(0, len(members), 1 if hostile is None else 2):
                _require_same(alone[members[place]], found, (members, place, hostile))
        outputs = [results[0] for results in alone]
        if ours and not self._rough:
            require_accurate(self.module, self.pool, outputs, self.stock)
        same_for_all = not any(bool(differing(outputs[0], other).any()) for other in outputs[1:])
        return Outcome("vacuous" if same_for_all else "same")


def runner(fn: Callable[[torch.Tensor], torch.Tensor], gradients: bool) -> Run:
    """fn as a function of its results, in which every NaN has the same bits."""

    def run(x: torch.Tensor) -> Result:
        if not gradients:
            with torch.no_grad():
                return (one_nan(fn(x)),)
        x = x.clone().requires_grad_()
        y = fn(x)
        if not y.requires_grad:
            return (one_nan(y.detach()),)
        return one_nan(y.detach()), *map(one_nan, torch.autograd.grad(y, x, y.detach()))

    return run


def one_nan(x: torch.Tensor) -> torch.Tensor:
    """A copy in which every NaN has the same bits: compilers give them different signs."""
    return torch.where(x.isnan(), torch.full_like(x, torch.nan), x)


def refusal_of(error: Exception) -> Outcome | None:
    """Outcome "refused" where the error says that an op or a dtype is not supported."""
    cause = getattr(error, "inner_exception", error)
    if isinstance(cause, UnsupportedOpError | UnsupportedDtypeError):
        return Outcome("refused", first_line(cause))
    return None


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


def require_accurate(
    module: torch.nn.Module, pool: torch.Tensor, ours: Sequence[torch.Tensor], stock: torch.Tensor
) -> None:
    """Raise InaccurateResultError where our error against float64 is over ten times that of stock."""
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(pool.double())
    finite = exact.isfinite() & stock.isfinite()
    got = torch.cat(list(ours))
    if not bool(finite.any()) or got.dtype == torch.float64:
        return
    errors = [(x.double() - exact)[finite].square().mean().sqrt().item() for x in (got, stock)]
    largest = exact[finite].abs().max().item()
    # Stock's own error depends on the batch: its vectorised functions are a few roundings of fp32 off, and
    # squares lose what is too small for them.
    few = torch.finfo(got.dtype).eps + 16 * torch.finfo(torch.float32).eps
    allowed = 10 * errors[1] + few * largest + torch.finfo(got.dtype).tiny
    if not (errors[0] <= allowed or math.isnan(errors[1])):
        raise InaccurateResultError(
            "the output is farther from float64 than stock PyTorch's",
            details=[
                f"root mean square error {errors[0]:.3g}, stock's {errors[1]:.3g}, allowed {allowed:.3g}"
            ],
            hint="the results are invariant but wrong: look for a missing term or a lower precision.",
        )


def _require_same(alone: Result, together: Result, place: Place) -> None:
    members, position, _ = place
    for what, got, want in zip(("the output", "the gradient"), together, alone, strict=False):
        if got.shape[0] != len(members) or got.dtype != want.dtype or got.shape[1:] != want.shape[1:]:
            raise AssertionError(f"{what} has another form in the batch: {got.shape}, alone {want.shape}")
        if differing(got[position], want[0]).any():
            raise RowDiffers(_variance(what, got[position], want[0], place), place)


def _variance(what: str, got: torch.Tensor, want: torch.Tensor, place: Place) -> BatchVarianceError:
    members, position, hostile = place
    differ = differing(got, want)
    at = tuple(differ.nonzero()[0].tolist()) if differ.dim() else ()
    others = "" if hostile is None else f", every second one of which is all {hostile}"
    return BatchVarianceError(
        f"{what} of sample {members[position]} changes with the batch",
        details=[
            f"at position {position} of samples {members}{others}",
            f"first difference at {list(at)}: alone {shown(want[at])}, in the batch {shown(got[at])}"
            f"{apart(ulps(want, got)[at])}; {int(differ.sum())} of {want.numel()} elements differ",
        ],
        hint="run the program below.",
    )
