"""The smallest case that still fails: fewer steps, smaller sizes and plainer forms are tried."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from bi_compile.testing.decoders import Decoder
from bi_compile.testing.random_models import RandomModel

Case = TypeVar("Case", RandomModel, Decoder)


def smallest(case: Case, fails: Callable[[Case], bool], *, tries: int = 60) -> Case:
    """A model or decoder that fails and of which no simpler neighbour does, or the best after so many tries.

    fails: whether a case fails as the first one did. It may be slow: each answer is asked for once.
    """
    asked = {case}
    while True:
        for simpler in _SIMPLER[type(case)](case):
            if simpler in asked:
                continue
            asked.add(simpler)
            if len(asked) > tries:
                return case
            if fails(simpler):
                case = simpler
                break
        else:
            return case


def _simpler_models(model: RandomModel) -> Iterator[RandomModel]:
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
        for smaller in _smaller(extent):
            yield variant(shape=(*model.shape[:at], smaller, *model.shape[at + 1 :]))
    for at, (name, numbers) in enumerate(steps):
        if any(numbers):
            yield variant(steps=(*steps[:at], (name, (0,) * len(numbers)), *steps[at + 1 :]))


def _simpler_decoders(case: Decoder) -> Iterator[Decoder]:
    """Neighbours of a decoder, the ones that save most first."""
    plain = Decoder()
    for name in ("layers", "dtype", "family", "cache", "window", "seed"):
        if getattr(case, name) != getattr(plain, name):
            yield dataclasses.replace(case, **{name: getattr(plain, name)})
    for name in ("lengths", "cuts"):
        numbers = getattr(case, name)
        for at, number in enumerate(numbers):
            if len(numbers) > 1:
                yield dataclasses.replace(case, **{name: (*numbers[:at], *numbers[at + 1 :])})
            for smaller in _smaller(number):
                yield dataclasses.replace(case, **{name: (*numbers[:at], smaller, *numbers[at + 1 :])})
    shared = case.heads // case.kv_heads
    for kv_heads in _smaller(case.kv_heads):
        yield dataclasses.replace(case, kv_heads=kv_heads, heads=kv_heads * shared)
    for each in _smaller(shared):
        yield dataclasses.replace(case, heads=case.kv_heads * each)
    for half in _smaller(case.head_size // 2):
        yield dataclasses.replace(case, head_size=2 * half)
    for inner in _smaller(case.inner):
        yield dataclasses.replace(case, inner=inner)


def _smaller(number: int) -> list[int]:
    return [n for n in dict.fromkeys((1, 2, 3, number // 2, number - 1)) if 0 < n < number]


_SIMPLER: dict[type, Callable[[Any], Iterator[Any]]] = {
    RandomModel: _simpler_models,
    Decoder: _simpler_decoders,
}
