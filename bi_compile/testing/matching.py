"""A batch and one of its samples alone, both recorded: which ops differ, and which are behind an output."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import torch

from bi_compile.testing.batches import Batch
from bi_compile.testing.bits import differing, ulps
from bi_compile.testing.outputs import apart, shown
from bi_compile.testing.recording import Op, Recording


@dataclass(frozen=True)
class Runs:
    """A batch, and one of its samples alone, both recorded."""

    batch: Batch
    position: int
    together: Recording
    alone: Recording

    def parted(self) -> tuple[int, Op | None, Op | None] | None:
        """Where the two runs go on with other ops: after how many, with which."""
        pairs = zip_longest(computing(self.together), computing(self.alone))
        for count, (ours, theirs) in enumerate(pairs):
            if ours is None or theirs is None or ours.name != theirs.name:
                return count, ours, theirs
        return None

    def changes(self) -> "Changes":
        found: Changes = {}
        for number, ours, theirs in zip(
            self.together.compared(), computing(self.together), computing(self.alone), strict=False
        ):
            verdict = self._compare(ours, theirs)
            if verdict != "same":
                found[number] = verdict
        return found

    def _compare(self, ours: Op, theirs: Op) -> 'Change | Literal["same", "unknown"]':
        unknown = len(ours.results) != len(theirs.results)
        for together, alone in zip(ours.results, theirs.results, strict=False):
            rows = list(_rows(together, alone, len(self.batch.members), self.position))
            if not rows:
                unknown = True
                continue
            # Which of two layouts is the sample's is not known: it is the one that agrees.
            row = min(rows, key=lambda row: int(differing(alone, row).sum()))
            if differing(alone, row).any():
                return Change(alone, row)
        return "unknown" if unknown else "same"


@dataclass(frozen=True)
class Change:
    alone: torch.Tensor
    row: torch.Tensor

    @property
    def element(self) -> tuple[int, ...]:
        return tuple(differing(self.alone, self.row).nonzero()[0].tolist())

    @property
    def ulps(self) -> torch.Tensor:
        return ulps(self.alone, self.row)

    @property
    def distance(self) -> float | None:
        """Ulps at that element; None where its values have no such distance."""
        distance = float(self.ulps[self.element])
        return None if distance != distance else distance

    def describe(self) -> str:
        differ, at = differing(self.alone, self.row), self.element
        return (
            f"first difference at {list(at)}: alone {shown(self.alone[at])}, in the batch "
            f"{shown(self.row[at])}{apart(self.ulps[at])}; "
            f"{int(differ.sum())} of {differ.numel()} elements differ"
        )


Changes = dict[int, Change | Literal["unknown"]]
"""By number in the batch's run: how an op's results differ, or that their shapes do not tell;
equal ones are absent."""


def _rows(together: torch.Tensor, alone: torch.Tensor, size: int, position: int) -> Iterator[torch.Tensor]:
    """What of an op's result in the batch may be the sample's: none where the shapes do not tell."""
    if together.dtype != alone.dtype or together.dim() != alone.dim():
        return
    extents = list(zip(together.shape, alone.shape, strict=True))
    grown = [dim for dim, (many, one) in enumerate(extents) if many != one]
    if any(many != size * one for dim in grown for many, one in [extents[dim]]):
        return
    block = interleaved = together
    for dim in grown:
        extent = alone.shape[dim]
        block = block.narrow(dim, position * extent, extent)
        index = torch.arange(position, size * extent, size, device=together.device)
        interleaved = interleaved.index_select(dim, index)
    yield block
    yield interleaved


def behind(recording: Recording, start: frozenset[int], changes: Changes) -> tuple[set[int], set[int]]:
    """The ops that differ and those that cannot be matched, behind `start` by such ops alone."""
    differ: set[int] = set()
    unknown: set[int] = set()
    seen: set[int] = set()
    pending = list(start)
    while pending:
        number = pending.pop()
        op = recording.ops[number]
        if number in seen or (op.results and number not in changes):
            continue
        seen.add(number)
        if op.results:
            (unknown if changes[number] == "unknown" else differ).add(number)
        pending.extend(op.sources)
    return differ, unknown


def computing(recording: Recording) -> list[Op]:
    return [recording.ops[number] for number in recording.compared()]
