"""The smallest model that still fails: fewer steps, smaller sizes and plainer forms are tried."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from bi_compile.testing.random_models import RandomModel


def smallest(model: RandomModel, fails: Callable[[RandomModel], bool], *, tries: int = 60) -> RandomModel:
    """A model that fails and of which no simpler neighbour does, or the best after so many tries.

    fails: whether a model fails as the first one did. It may be slow: each answer is asked for once.
    """
    asked = {model}
    while True:
        for simpler in _simpler(model):
            if simpler in asked:
                continue
            asked.add(simpler)
            if len(asked) > tries:
                return model
            if fails(simpler):
                model = simpler
                break
        else:
            return model


def _simpler(model: RandomModel) -> Iterator[RandomModel]:
    """Neighbours of a model, the ones that save most first."""

    def variant(**changes: Any) -> RandomModel:
        data: dict[str, Any] = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        return RandomModel.fitting(**(data | changes))

    steps = model.steps
    for length in (len(steps) // 2, len(steps) // 4, 1):
        for start in range(0, len(steps), max(length, 1)):
            if length:
                yield variant(steps=(*steps[:start], *steps[start + length :]))
    if model.dtype != "float32":
        yield variant(dtype="float32")
    if model.kind != "normal":
        yield variant(kind="normal")
    if model.seed:
        yield variant(seed=0)
    for at, extent in enumerate(model.shape):
        if len(model.shape) > 1:
            yield variant(shape=(*model.shape[:at], *model.shape[at + 1 :]))
        for smaller in (1, 2, 3, extent // 2, extent - 1):
            if 0 < smaller < extent:
                yield variant(shape=(*model.shape[:at], smaller, *model.shape[at + 1 :]))
    for at, (name, numbers) in enumerate(steps):
        if any(numbers):
            yield variant(steps=(*steps[:at], (name, (0,) * len(numbers)), *steps[at + 1 :]))
