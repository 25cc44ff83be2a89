"""Does a random model give each sample its bits in every batch? A failure comes with a program."""

import warnings

import torch

from bi_compile.testing.compiling import run_by
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.scripts import script_of
from bi_compile.testing.subjects import BATCHES, Outcome, RowDiffers, Run, Subject, refusal_of, runner

OURS = ("batch_invariant", "canonical")


def check_model(
    model: RandomModel,
    *,
    backend: str = "batch_invariant",
    gradients: bool = False,
    alone: bool = False,
    dynamic: bool | None = None,
) -> Outcome:
    """Assert that every sample has the same bits alone and in batches, with hostile neighbours, too.

    backend: one of torch.compile, "eager" for the module as it is, or "canonical" for it under
        `bi_compile.eager()`, which compiles nothing and is fast.
    gradients: compare the gradient of the input, too; the graph is then one for training.
    alone: compile the graph of one sample, too. Otherwise, under "batch_invariant", the results alone are
        those of `bi_compile.eager()`: the one compiled graph must have their bits.
    dynamic: of torch.compile; with True sizes of features are symbolic, too.

    Our results are also compared with float64, within ten times the error of stock.
    Raises BatchVarianceError or InaccurateResultError; whatever is raised has a note, a program that shows
    the failure by itself.
    """
    try:
        return _checked(model, backend, gradients, alone, dynamic)
    except Exception as failure:
        differs = failure if isinstance(failure, RowDiffers) else None
        error = failure if differs is None else differs.error
        where = {} if differs is None else {"place": differs.place, "outside": differs.outside}
        how = {"backend": backend, "gradients": gradients, "dynamic": dynamic}
        error.add_note(script_of(model, **how, failure=error, **where))
        raise error from None


def leaves_graphs(model: RandomModel) -> bool:
    """Whether part of the model runs outside graphs."""
    return any(name in ("outside", "graph_break") for name, _ in model.steps)


def _checked(model: RandomModel, backend: str, gradients: bool, alone: bool, dynamic: bool | None) -> Outcome:
    if gradients and backend == "batch_invariant" and any(name == "outside" for name, _ in model.steps):
        return Outcome("refused", "gradients of code outside graphs are stock PyTorch's")
    subject = Subject.of(model, gradients=gradients)
    if isinstance(subject, Outcome):
        return subject
    run = _run_by(subject.module, backend, gradients, dynamic)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            first = run(subject.batch(*BATCHES[0]))
            single = None
            if backend == "batch_invariant" and not alone:
                single = subject.canonical_alone(gradients=gradients)
            outside = single is not None
            if single is None:
                single = [run(row) for row in subject.rows]
            together = [first, *(run(subject.batch(*batch)) for batch in BATCHES[1:])]
        except Exception as error:
            if refused := refusal_of(error):
                return refused
            raise
        try:
            return subject.judge(single, together, ours=backend in OURS)
        except RowDiffers as failure:
            failure.outside = outside
            raise


def _run_by(module: torch.nn.Module, backend: str, gradients: bool, dynamic: bool | None) -> Run:
    if backend == "canonical":  # the gradients, too
        return run_by(runner(module, gradients), backend)
    return runner(run_by(module, backend, dynamic=dynamic), gradients)
