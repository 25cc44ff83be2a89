"""Tiles of the CUDA convolution, and which a call gets: all have one order, so the batch may choose."""

from typing import NamedTuple

import torch

from bi_compile import numerics
from bi_compile.templates.gpu.device import ALL_REGISTERS, Processor


class Tile(NamedTuple):
    """Free choices: none enters the tree, except that fp32 has one block_k."""

    block_out: int
    """Output channels."""
    block_at: int
    """Positions, those of the next sample following on those of one."""
    block_k: int
    warps: int
    stages: int = 3

    @property
    def piece(self) -> int:
        """Positions of which there are 16 elements or fewer to a thread."""
        return max(16, 512 * self.warps // self.block_out)

    def options(self, capability: int) -> dict[str, int]:
        """Triton's. All registers where the compiler spills without; on Hopper it was measured so."""
        all_registers = ALL_REGISTERS if capability != 90 else {}
        return {"num_warps": self.warps, "num_stages": self.stages, **all_registers}

    def shared_memory(self, element_size: int) -> int:
        """Bytes of the blocks in flight, and some for barriers."""
        return self.stages * (self.block_out + self.block_at) * self.block_k * element_size + 256


# Measured on an H100 with triton 3.6.0: 8 layers of usual networks at batch 1 and 32. Small ones first.
TILES = (
    Tile(16, 64, 128, 4),
    Tile(64, 32, 128, 4),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 128, 64, 4, 4),
    Tile(128, 64, 64, 4, 4),
    Tile(128, 128, 64, 8, 4),
)
# Before Hopper. Not measured.
TILES_BEFORE_90 = (Tile(16, 64, 32, 4), Tile(32, 64, 32, 4), Tile(64, 64, 32, 4), Tile(128, 64, 64, 8))
_K32 = numerics.CONTRACTION_GPU_FP32_BLOCK
TILES_FP32 = (
    Tile(16, 32, _K32, 4),
    Tile(16, 64, _K32, 4),
    Tile(32, 64, _K32, 4),
    Tile(64, 32, _K32, 4),
    Tile(64, 64, _K32, 4),
)
TILES_FP64 = (Tile(16, 32, 1, 4),)


def shipped(processor: Processor, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Those that may be chosen on a device, small ones first."""
    tiles = TILES if processor.capability >= 90 else TILES_BEFORE_90
    tiles = {torch.float32: TILES_FP32, torch.float64: TILES_FP64}.get(dtype, tiles)
    # On Blackwell a tile of 64 rows is summed in tensor memory, a smaller one by another family of
    # instructions that nobody has compared there: 16-bit types have large ones alone, fp32 small ones.
    large = dtype.itemsize == 2
    return tuple(
        tile
        for tile in tiles
        if (processor.capability < 100 or (tile.block_out >= 64) == large)
        and tile.shared_memory(dtype.itemsize) <= processor.shared_memory
    )


def choose(
    processor: Processor, dtype: torch.dtype, groups: int, inputs: int, outputs: int, rows: int, k: int
) -> Tile:
    """For so many channels of each group, positions of all samples, and products of an output.

    The largest tile that the channels fill and that leaves work for the whole device; else the one with most.
    """
    tiles = shipped(processor, dtype)
    single = dtype == torch.float32
    if inputs % (numerics.CONTRACTION_GPU_FP32_BLOCK if single else 16):
        # Blocks of several taps, whose elements each have an address of their own.
        tiles = [
            tile for tile in tiles if tile.block_at <= 64 and (not single or tile.block_out <= 32)
        ] or tiles
    fitting = [tile for tile in tiles if tile.block_out <= max(16, outputs)] or tiles[:1]
    enough = (2 if single else 1) * processor.multiprocessors

    def programs(tile: Tile) -> int:
        return groups * -(-outputs // tile.block_out) * -(-rows // tile.block_at)

    busy = [tile for tile in fitting if programs(tile) >= enough]
    return whole(busy[-1] if busy else max(fitting, key=programs), dtype, inputs)


def whole(tile: Tile, dtype: torch.dtype, inputs: int) -> Tile:
    """With blocks of K of one tap each, if channels fill any. fp32 has one block of K."""
    if dtype.itemsize != 2:
        return tile
    one_tap = min(tile.block_k, inputs & -inputs)
    return tile._replace(block_k=one_tap if one_tap >= 16 else min(tile.block_k, 64))
