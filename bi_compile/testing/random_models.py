"""A model as plain data: steps of the grammar, and the code they are written out as."""

import linecache
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bi_compile.testing.arguments import require_integer, require_integers, require_one_of
from bi_compile.testing.grammar import HELPERS, OPS
from bi_compile.testing.sites import LARGEST, Misfit, Rows, Shape, Site, Value, Weights, elements
from bi_compile.testing.values import EXPONENTS, KINDS, values

SAMPLES = 5
"""In the pool from which batches of a random model are made."""

Step = tuple[str, tuple[int, ...]]
"""An op of the grammar, and the numbers that choose among its forms (`Site`)."""


@dataclass(frozen=True)
class RandomModel:
    """A module in which no sample sees another, and its inputs.

    shape: of one sample. dtype: of the input, such as "float32". kind: of the values, see `values`.
    steps: what is computed, one after the other. seed: of weights and inputs.
    Equal data is an equal model: its code, weights and inputs follow from it. What cannot be is named by a
    ValueError or TypeError.
    """

    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    dtype: str = "float32"
    kind: str = "normal"
    seed: int = 0

    def __post_init__(self) -> None:
        require_integers("shape", self.shape, least=1)
        for name, _ in self.steps:
            require_one_of("the op of a step", name, OPS)
        require_one_of("dtype", self.dtype, [str(dtype).removeprefix("torch.") for dtype in EXPONENTS])
        require_one_of("kind", self.kind, list(KINDS))
        require_integer("seed", self.seed)

    @classmethod
    def fitting(cls, shape: tuple[int, ...], steps: Sequence[Step], **rest: Any) -> "RandomModel":
        """The model of those steps that can stand where they are; the others are left out."""
        kept: list[Step] = []
        values, weights = [_input(shape, rest.get("dtype", "float32"))], Weights()
        for step in steps:
            try:
                values.append(_result(step, values, weights)[0])
            except Misfit:
                continue
            kept.append(step)
        return cls(tuple(shape), tuple(kept), **rest)

    @classmethod
    def drawn(cls, rng: random.Random, *, steps: int = 10) -> "RandomModel":
        """A model of at most so many steps."""
        rank = rng.randint(1, 3)
        sizes = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 130, 300) if rank < 3 else (1, 2, 3, 5, 8, 9)
        drawn = [(rng.choice(list(OPS)), tuple(rng.randrange(16) for _ in range(6))) for _ in range(steps)]
        return cls.fitting(
            tuple(rng.choice(sizes) for _ in range(rank)),
            drawn,
            dtype=rng.choice(("float32", "float32", "float32", "bfloat16", "float16", "float64")),
            kind=rng.choice(("normal", "normal", "cancelling", "wide", "subnormal")),
            seed=rng.randrange(1000),
        )

    @cached_property
    def source(self) -> str:
        """The code of the module, a class named Model."""
        values, weights, lines = [_input(self.shape, self.dtype)], Weights(), []
        for step in self.steps:
            value, code = _result(step, values, weights)
            lines.append(f"        {value.name} = {code}")
            values.append(value)
        attributes = [f"        self.{name} = {made}" for name, (_, made) in weights.made.items()]
        body = "\n".join([*lines, f"        return {_samples_first(values[-1])}"])
        helpers = [text for name, text in HELPERS.items() if f"{name}(" in body]
        parts = [
            *(f"{text}\n\n" for text in helpers),
            "class Model(nn.Module):",
            *(
                ["    def __init__(self):", "        super().__init__()", *attributes, ""]
                if attributes
                else []
            ),
            "    def forward(self, x):",
            body,
        ]
        return "\n".join(parts) + "\n"

    def module(self) -> torch.nn.Module:
        """The module in evaluation mode, its weights drawn; torch's generator stays as it was."""
        file = f"<random model {abs(hash(self.source)):x}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        names: dict[str, Any] = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
        exec(compile(self.source, file, "exec"), names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return names["Model"]().eval().requires_grad_(False)

    def inputs(self, samples: int) -> torch.Tensor:
        """A pool of samples, stacked along dimension 0."""
        return values(self.kind, (samples, *self.shape), getattr(torch, self.dtype), self.seed)

    def __str__(self) -> str:
        return self.source


def _input(shape: Sequence[int], dtype: str) -> Value:
    return Value("x", (Rows(), *shape), dtype)


def _result(step: Step, values: Sequence[Value], weights: Weights) -> tuple[Value, str]:
    """What a step computes, and its code. Raises Misfit where it cannot stand, with the weights unchanged."""
    op, before = OPS[step[0]], dict(weights.made)
    site = Site(values, step[1], weights)
    try:
        if not op.when(site):
            raise Misfit(op.name)
        code, shape = site.write(op.code), op.becomes(site)
        if not 0 < elements(shape) <= LARGEST or len(shape) > 6:
            raise Misfit("too large")
    except (Misfit, IndexError):
        weights.made = before
        raise Misfit(op.name) from None
    return Value(f"x{len(values)}", shape, op.dtype or site.dtype), code


def _samples_first(value: Value) -> str:
    """Code that takes the batch out of the dimension it was merged into and puts it first."""
    shape: Shape = value.shape
    at = next(d for d, extent in enumerate(shape) if isinstance(extent, Rows))
    rows, code = shape[at], value.name
    assert isinstance(rows, Rows)
    if rows != Rows():
        code += f".unflatten({at}, ({rows.outer}, -1, {rows.inner}))"
        at += 1
    return code + (f".movedim({at}, 0)" if at else "")
