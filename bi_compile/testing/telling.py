"""Models whose results tell: no step may leave the samples with one and the same result."""

from collections.abc import Sequence

import torch

from bi_compile.testing.random_models import SAMPLES, RandomModel, Step


def telling(model: RandomModel) -> RandomModel:
    """The model without the steps after which its samples no longer differ, and those that cannot run.

    A constant, a saturated function, an overflow or an op without a kernel for a dtype would make a check of
    the whole model show nothing. Samples differ where two of them hold different finite numbers at one place;
    stock PyTorch computes them, a few milliseconds a step.
    """
    kept: tuple[Step, ...] = ()
    for step in model.steps:
        longer = _with(model, (*kept, step))
        if len(longer.steps) > len(kept) and _samples_differ(longer):
            kept = longer.steps
    return _with(model, kept)


def _with(model: RandomModel, steps: Sequence[Step]) -> RandomModel:
    return RandomModel.fitting(model.shape, steps, dtype=model.dtype, kind=model.kind, seed=model.seed)


def _samples_differ(model: RandomModel) -> bool:
    try:
        with torch.no_grad():
            y = model.module()(model.inputs(SAMPLES)).reshape(SAMPLES, -1)
    except (NotImplementedError, RuntimeError):
        return False
    return bool((y[1:].isfinite() & y[:1].isfinite() & (y[1:] != y[:1])).any())
