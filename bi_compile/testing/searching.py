"""The first batch in which an output of a sample has other bits than alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from bi_compile.testing.batches import Batch, Pool
from bi_compile.testing.bits import differing
from bi_compile.testing.matching import Change, Runs
from bi_compile.testing.outputs import Outputs, batch_dims_of_outputs, row_of
from bi_compile.testing.recording import Recording


@dataclass(frozen=True)
class Found:
    """An output of one sample that differs in a batch.

    dim: its batch dimension. change: None where it has another form.
    """

    runs: Runs
    output: str
    dim: int
    change: Change | None


def first_difference(pool: Pool, run: Callable[[Batch], Recording], batches: Iterator[Batch]) -> Found | None:
    alone: dict[int, Outputs] = {0: run(pool.alone(0)).outputs}
    dims = batch_dims_of_outputs(lambda batch: run(batch).outputs, pool, alone[0])
    for batch in batches:
        together = run(batch)
        for position in batch.kept:
            sample = batch.members[position]
            if sample not in alone:
                alone[sample] = run(pool.alone(sample)).outputs
            for name, dim in dims.items():
                change = changed(pool, together.outputs.get(name), alone[sample][name], dim, batch, position)
                if change != "same":
                    runs = Runs(batch, position, together, run(pool.alone(sample)))
                    return Found(runs, name, dim, change)
    return None


def changed(
    pool: Pool, output: torch.Tensor | None, alone: torch.Tensor, dim: int, batch: Batch, position: int
) -> Change | Literal["same"] | None:
    """How a sample's part of an output differs from the one alone; None where it has another form."""
    row = row_of(pool, output, dim, position=position, batch=batch, expected=alone)
    if row is None or row.shape != alone.shape or row.dtype != alone.dtype:
        return None
    return Change(alone, row) if differing(alone, row).any() else "same"
