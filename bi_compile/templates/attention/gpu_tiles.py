"""The free choices of attention on CUDA devices: tiles, the pieces that are multiplied, how many programs.

Which of them spill nothing was found by compiling, with Triton 3.6: `tests/interpreted/attention_matrix.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from bi_compile.numerics import ATTENTION_GPU_FIRST_SPLITS
from bi_compile.numerics import ATTENTION_KV_BLOCK as BLOCK
from bi_compile.templates.gpu.row_view import power_of_two

FEW_ROWS = 8
"""Of `gpu_few`."""


def pairs(splits: int) -> int:
    """How many programs of a head walk two short splits each, to be as long as others; 0 if few are long."""
    return ATTENTION_GPU_FIRST_SPLITS // 2 if splits > 2 * ATTENTION_GPU_FIRST_SPLITS else 0


@dataclass(frozen=True)
class Tile:
    """Free choices: none of them enters a row's bits."""

    rows: int
    warps: int
    stages: int
    few: int = 0
    """How many blocks a step of `gpu_few` takes; 0: not by that."""
    kept: int | None = None
    """Columns of the sum of finished splits that stay in registers, None for all; see `gpu_held`."""
    late: bool = False
    """By `gpu_late` where it can: splits in sequence, no mask, no softcap, no head in two tiles."""

    @property
    def keys(self) -> int:
        """Those of one step."""
        return max(1, self.few) * BLOCK

    @classmethod
    def of_few(cls, dims: int, heads: int, splits: int, processors: int, memory: int) -> "Tile | None":
        """For few rows without a mask; None where that takes too much memory.

        dims: numbers of a key and its value. heads: kv heads of all sequences, each with so many splits.
        processors: multiprocessors, each with so much shared memory.
        """
        long = splits - min(splits, ATTENTION_GPU_FIRST_SPLITS) // 2
        if heads * long >= 4 * processors and dims <= 256:
            # One warp waits for no other, and what it waits for is hidden by those of other programs.
            return cls(FEW_ROWS, 1, 1, few=1)
        # Where each has a multiprocessor of its own nothing else hides the latency of its loads.
        stages = 3 if heads * splits <= processors else 2
        stages = min(stages, (memory - 2**13) // (2 * BLOCK * dims * 2))
        return cls(FEW_ROWS, 2, stages, few=2) if stages > 1 else None

    @classmethod
    def choose(
        cls, rows: int, dims: int, dtype: torch.dtype, maps: bool, many: bool, small: bool,
        mask: torch.dtype | None, memory: int, capped: bool = False, value_dims: int | None = None,
    ) -> "Tile":  # fmt: skip
        """For `rows` that share their keys, with `dims` columns of a key or a value, of which there are more.

        value_dims: those of a value, else as many.
        maps: keys and values are read through tensor maps. many: there are more heads than run at a time.
        small: fewer than 64 rows, see `_has_tensor_memory`. mask: its dtype, if one is read. memory: bytes
        that a block may share. capped: scores have a softcap.
        """
        added = mask not in (None, torch.bool)
        if dtype == torch.float32:
            # Few warps wait less for each other, but what they multiply has to fit their registers.
            few = rows <= 4 and dims <= (64 if added else 128)
            # 16 rows of 512 numbers spill on 86, 89 and 100, and with a mask everywhere.
            hard = mask is not None or small or memory < 2**17
            most = FEW_ROWS if hard and 256 < dims <= 512 else 16
            return cls(min(most, max(4, power_of_two(rows))), 4 if few else 8, 1)
        if dims > 256:
            return cls(16, 8, 1)
        if rows <= 16:
            two_blocks = 2 * BLOCK * 2 * dims * 2
            fit = 2 if two_blocks + 2**14 > memory else 3
            if mask is not None and maps and dims > 128:
                # Two warps would spill what they read of the mask.
                return cls(16, 4, 2 if added else fit)
            stages = 2 if many else fit
            # Addresses of what is not mapped take registers, those of a mask's numbers too.
            few = 4 if added and dims > 64 else 2
            return cls(16, 2 if maps else few if dims <= 128 else 8, stages)
        if small:
            return cls(32, 8, 2)
        if not maps:
            return cls(32, 8, 2)
        if dims > 192:
            # What a mask or a softcap takes leaves no registers to the sum.
            return cls(128, 8, 2, kept=0 if capped or mask is not None else 64, late=True)
        if dims > 128:
            # Where values leave registers to a mask's numbers, two blocks share a multiprocessor.
            return cls(64, 4, 2) if added and (value_dims or dims) <= 128 else cls(128, 8, 3, kept=128)
        # Blocks of 96 columns leave room to a third one, where they have neither mask nor softcap.
        three = 80 < dims <= 96 and mask is None and not capped
        return cls(64, 4, 2 if three else 3, kept=0 if capped and mask is not None else None)

    @classmethod
    def spread(cls, group: int, dims: int, dtype: torch.dtype, maps: bool, small: bool) -> "Tile":
        """For rows of queries that are far apart: few, since the keys between are of no use to most."""
        if dtype == torch.float32:
            return cls(FEW_ROWS if 256 < dims <= 512 else 16, 8, 1)
        if dims > 128:
            return cls(16, 4 if maps else 8, 2) if dims <= 256 else cls(16, 8, 1)
        if group > 2 and maps and not small:
            return cls(64, 4, 2)
        return cls(16, (1 if dims <= 64 else 2) * (1 if maps else 2), 2)


CAREFUL = Tile(16, 8, 1)
"""Of the kernel that does tiles again."""


class Pieces(NamedTuple):
    """What is multiplied at a time, of heads padded to powers of two. Free, as a tile is.

    A thread holds all that it multiplies by scalar instructions, as in fp32; and the careful kernel counts.
    """

    dims: int
    """Of queries and keys."""
    value_dims: int
    """Of values; where these are not all, scores are worked out for each."""
    value_keys: int
    """Keys whose values these are."""

    @classmethod
    def of(
        cls,
        rows: int,
        dims: int,
        value_dims: int,
        dtype: torch.dtype,
        careful: bool = False,
        short: bool = False,
        masked: bool = False,
    ) -> "Pieces":
        """For tiles of so many rows.

        careful: for the kernel that does tiles again. short: of registers, in fp32.
        masked: a mask is read.
        """
        if careful:
            return cls(min(dims, 32), min(value_dims, 128), BLOCK)
        whole = dtype != torch.float32 and max(dims, value_dims) <= 256
        if value_dims > 512:
            value_dims = 256
        if dtype != torch.float32:
            keys = 16 if masked and value_dims > 256 else BLOCK
            return cls(dims if whole else min(dims, 128), value_dims, keys)
        # A product takes 16 keys at least.
        single = 32 if short else 64 if dims > 256 or (masked and rows <= 4) else 2**10 // rows
        return cls(min(dims, single), value_dims, min(BLOCK, max(16, 2**16 // (rows * value_dims))))


def careful_programs(steps: int, processors: int) -> int:
    """How many programs of the careful kernel share so many steps, of which mostly none is to be done.

    A multiprocessor has the registers of one. An odd number: heads and the steps of a tile are powers of two,
    and what recurs with them, as an infinity in one head does, would meet the same few programs.
    """
    return min(steps, (processors - 1) | 1)
