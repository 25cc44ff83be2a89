"""The pool of samples, and the batches drawn from it: random members, order, positions and neighbours."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bi_compile.testing.arguments import (
    require_dim,
    require_integer,
    require_integers,
    require_numbers,
    require_sequence,
)
from bi_compile.testing.messages import VacuousCheckError
from bi_compile.testing.padding import Pad
from bi_compile.testing.trees import leaves, map_tensors


@dataclass(frozen=True)
class Batch:
    """Which samples share a batch, which of them are compared, and what the others were replaced by."""

    members: tuple[int, ...]
    kept: tuple[int, ...]
    """Positions whose rows are compared."""
    hostile: float | None
    """Value that fills the floating-point inputs of every other position; None leaves them as they are."""
    length: int | None
    """Length to which all members are padded; None without padding."""
    trial: str

    def describe(self, position: int) -> str:
        if len(self.members) == 1:
            return "no neighbours"
        if self.hostile is not None:
            return f"hostile neighbours: their floating-point inputs are all {self.hostile}"
        others = [str(s) for p, s in enumerate(self.members) if p != position]
        shown = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
        return f"plain neighbours: {'samples' if len(others) > 1 else 'sample'} {shown}"


@dataclass(frozen=True)
class Pool:
    """All samples, stacked along the batch dimension of each input."""

    inputs: tuple[Any, ...]
    batch_dims: tuple[int | None, ...]
    padding: Pad | None
    size: int
    floating: bool
    """Whether any batched input is floating-point, so that neighbours can be made hostile."""

    @classmethod
    def of(
        cls, inputs: tuple[Any, ...], batch_dims: int | Sequence[int | None], padding: Pad | None
    ) -> "Pool":
        dims = _per_input(batch_dims, len(inputs))
        if not isinstance(padding, Pad | None):
            raise TypeError(f"padding must be a Pad such as Pad(lengths=(3, 5)), not {padding!r}")
        extents: dict[str, int] = {}
        floating = False
        for place, (tree, dim) in enumerate(zip(inputs, dims, strict=True)):
            if dim is None:
                continue
            for path, leaf in leaves(tree, f"input {place}"):
                if isinstance(leaf, torch.Tensor) and leaf.dim() > 0:
                    require_dim(f"batch_dims of {path}", dim, leaf.dim())
                    extents[path] = leaf.shape[dim]
                    floating |= leaf.is_floating_point()
        if not extents:
            raise VacuousCheckError(
                "no input has a batch dimension",
                hint="pass tensors, and their sample dimension as batch_dims; None marks an unbatched input.",
            )
        if len(set(extents.values())) > 1:
            raise ValueError(f"the inputs do not hold the same number of samples: {extents}")
        size = next(iter(extents.values()))
        if size < 2:
            raise VacuousCheckError(
                f"the pool holds {size} sample{'s' * (size != 1)}: nothing can share its batch",
                hint="pass at least 2 different samples, better 8, stacked along the batch dimension.",
            )
        if padding is not None:
            padding.require_fit(inputs, dims, size)
        return cls(inputs, dims, padding, size, floating)

    def take(self, batch: Batch) -> tuple[Any, ...]:
        """Fresh, contiguous inputs of a batch."""
        return tuple(
            tree if dim is None else map_tensors(tree, lambda x, p=place, d=dim: self._rows(x, p, d, batch))
            for place, (tree, dim) in enumerate(zip(self.inputs, self.batch_dims, strict=True))
        )

    def alone(self, sample: int, copies: int = 1) -> Batch:
        length = self.padding.length_of(sample) if self.padding else None
        return Batch((sample,) * copies, tuple(range(copies)), None, length, "alone")

    def draw(self, size: int, *, trials: int, neighbours: Sequence[float], seed: int) -> Iterator[Batch]:
        """Batches of one size. They depend on seed, size and trial alone, whichever other sizes are drawn."""
        for trial in range(trials):
            rng = _rng(seed, size, trial)
            members = self._members(rng, size)
            yield Batch(members, tuple(range(size)), None, self._length(rng, members), f"trial {trial}")
        if not self.floating or size == 1:
            return
        for value in neighbours:
            rng = _rng(seed, size, str(value))
            members = self._members(rng, size)
            kept = tuple(sorted(rng.sample(range(size), rng.choice([1, max(1, size // 2)]))))
            yield Batch(members, kept, value, self._length(rng, members), f"neighbours {value}")

    def _members(self, rng: random.Random, size: int) -> tuple[int, ...]:
        if size <= self.size:
            return tuple(rng.sample(range(self.size), size))
        # More rows than samples: everyone once, the rest drawn again, all shuffled.
        members = [*range(self.size), *rng.choices(range(self.size), k=size - self.size)]
        rng.shuffle(members)
        return tuple(members)

    def _length(self, rng: random.Random, members: Sequence[int]) -> int | None:
        if self.padding is None:
            return None
        longest = max(self.padding.length_of(s) for s in members)
        limit = max(self.padding.length_of(s) for s in range(self.size))
        return rng.choice([longest, rng.randint(longest, limit)])

    def _rows(self, x: torch.Tensor, place: int, dim: int, batch: Batch) -> torch.Tensor:
        if x.dim() == 0:
            return x
        dim %= x.dim()
        index = torch.tensor(batch.members, device=x.device)
        rows = x.detach().index_select(dim, index)
        if self.padding is not None and batch.length is not None:
            rows = self.padding.cut(rows, place, members=batch.members, batch_dim=dim, length=batch.length)
        if batch.hostile is not None and x.is_floating_point():
            others = [p for p in range(len(batch.members)) if p not in batch.kept]
            rows.index_fill_(dim, torch.tensor(others, dtype=torch.long, device=x.device), batch.hostile)
        return rows


def require_drawing(
    pool: Pool, *, sizes: Sequence[int], trials: int, neighbours: Sequence[float], seed: int
) -> None:
    """Raise VacuousCheckError where no batch would be drawn in which a sample has a neighbour."""
    require_integers("sizes", sizes, least=1)
    require_integer("trials", trials, least=0)
    require_numbers("neighbours", neighbours)
    require_integer("seed", seed)
    if not any(size > 1 for size in sizes):
        raise VacuousCheckError(
            f"no batch size above 1 in sizes={tuple(sizes)}",
            hint="leave sizes out, or add 2 and an odd number.",
        )
    if trials == 0 and not (pool.floating and len(neighbours)):
        why = "neighbours is empty" if pool.floating else "no input is floating-point, to hold neighbours"
        raise VacuousCheckError(
            f"no batch is drawn: trials is 0, and {why}", hint="leave trials out, or pass at least 1."
        )


def _per_input(batch_dims: int | Sequence[int | None], count: int) -> tuple[int | None, ...]:
    if isinstance(batch_dims, int):
        return (batch_dims,) * count
    require_sequence("batch_dims", batch_dims)
    if len(batch_dims) != count:
        raise ValueError(f"batch_dims has {len(batch_dims)} entries for {count} inputs")
    for place, dim in enumerate(batch_dims):
        if dim is not None:
            require_integer(f"batch_dims[{place}]", dim)
    return tuple(batch_dims)


def _rng(*key: object) -> random.Random:
    return random.Random(hashlib.sha256(repr(key).encode()).digest())
