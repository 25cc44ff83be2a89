"""Samples of different lengths, padded to the longest of their batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from bi_compile.testing.arguments import (
    require_dim,
    require_integer,
    require_integers,
    require_number,
    require_one_of,
    require_sequence,
)
from bi_compile.testing.trees import leaves

Side = Literal["right", "left"]


@dataclass(frozen=True, kw_only=True)
class Pad:
    """How the samples of the pool are padded.

    The pool stays rectangular: every input is given at the longest length. A sample alone is cut to its own
    length; in a batch, every sample is cut or padded to the longest of its members, sometimes further. An
    attention mask is an input like any other, with fill 0.

        assert_batch_invariant(model, input_ids, attention_mask, padding=Pad(lengths=lengths, fill=(0, 0)))

    lengths: length of each sample of the pool, at least 1.
    dim: the dimension of length, one for all inputs or one per input, None for an input that has no length.
    fill: what stands in the padded positions, one for all inputs or one per input.
    side: which end is padded.

    Outputs are compared without the padding: every dimension that grew with the padding is cut back to the
    sample's own length on the same side.
    """

    lengths: Sequence[int] | torch.Tensor
    dim: int | Sequence[int | None] | None = 1
    fill: float | Sequence[float] = 0
    side: Side = "right"

    def __post_init__(self) -> None:
        lengths = self.lengths.tolist() if isinstance(self.lengths, torch.Tensor) else self.lengths
        require_integers("lengths", lengths, least=1)
        require_one_of("side", self.side, get_args(Side))
        for place, dim in _entries("dim", self.dim):
            if dim is not None:
                require_integer(f"dim{place}", dim)
        for place, fill in _entries("fill", self.fill):
            require_number(f"fill{place}", fill)

    def require_fit(self, inputs: tuple[Any, ...], batch_dims: Sequence[int | None], samples: int) -> None:
        """Raise ValueError where the inputs of a pool cannot be cut and padded as this says."""
        if len(self.lengths) != samples:
            raise ValueError(f"padding has {len(self.lengths)} lengths for {samples} samples")
        for name, given in (("dim", self.dim), ("fill", self.fill)):
            if isinstance(given, Sequence) and len(given) != len(inputs):
                raise ValueError(f"{name} of padding has {len(given)} entries for {len(inputs)} inputs")
        longest, padded = max(map(self.length_of, range(samples))), False
        for place, (tree, batch_dim) in enumerate(zip(inputs, batch_dims, strict=True)):
            dim = self.dim_of(place)
            if dim is None or batch_dim is None:
                continue
            for path, leaf in leaves(tree, f"input {place}"):
                if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0:
                    continue
                require_dim(f"dim of padding for {path}", dim, leaf.dim())
                if dim % leaf.dim() == batch_dim % leaf.dim():
                    raise ValueError(f"dim of padding for {path} is {dim}, which is its batch dimension")
                if leaf.shape[dim] < longest:
                    raise ValueError(
                        f"padding has a length of {longest}, but {path} is {leaf.shape[dim]} long"
                    )
                padded = True
        if not padded:
            raise ValueError(f"dim={self.dim} of padding leaves no input to pad")

    def length_of(self, sample: int) -> int:
        return int(self.lengths[sample])

    def dim_of(self, place: int) -> int | None:
        """The length dimension of the input at `place`."""
        return self.dim if self.dim is None or isinstance(self.dim, int) else self.dim[place]

    def fill_of(self, place: int) -> float:
        return self.fill if isinstance(self.fill, (int, float)) else self.fill[place]

    def cut(self, x: torch.Tensor, place: int, *, members: Sequence[int], batch_dim: int, length: int):
        """x, a batch of `members` at the pool's length, at `length` with its padding filled in."""
        dim = self.dim_of(place)
        if dim is None:
            return x
        have = x.shape[dim]
        start = 0 if self.side == "right" else have - length
        x = x.narrow(dim, start, length).clone(memory_format=torch.contiguous_format)
        for row, sample in enumerate(members):
            own = self.length_of(sample)
            if own < length:
                padded = own if self.side == "right" else 0
                x.select(batch_dim, row).unsqueeze(batch_dim).narrow(dim, padded, length - own).fill_(
                    self.fill_of(place)
                )
        return x

    def trim(self, row: torch.Tensor, sample: int, *, alone: torch.Size, length: int) -> torch.Tensor:
        """An output row of a batch padded to `length`, back at the sample's own length."""
        own = self.length_of(sample)
        for dim, extent in enumerate(row.shape):
            if extent == length and dim < len(alone) and alone[dim] == own:
                row = row.narrow(dim, 0 if self.side == "right" else length - own, own)
        return row


def _entries(name: str, given: Any) -> list[tuple[str, Any]]:
    """Every entry with its place, or the one value for all inputs."""
    if given is None or isinstance(given, int | float):
        return [("", given)]
    require_sequence(name, given)
    return [(f"[{place}]", value) for place, value in enumerate(given)]
