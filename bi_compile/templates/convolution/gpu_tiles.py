"""Tiles of the CUDA convolution, and which a call gets: all have one order, so the batch may choose."""

from typing import NamedTuple

import torch

from bi_compile import numerics
from bi_compile.templates.gpu.device import Processor


class Tile(NamedTuple):
    """Free choices: none enters the tree, except that fp32 has one block_k."""

    block_out: int
    """Output channels."""
    block_at: int
    """Positions, those of the next sample following on those of one."""
    block_k: int
    warps: int
    stages: int = 3


# Measured on an H100 with triton 3.6.0: 12 layers of usual networks at batch 1 and 32.
TILES = (Tile(16, 64, 32, 4), Tile(32, 64, 64, 4), Tile(64, 64, 64, 4), Tile(128, 64, 64, 8))
# Before Hopper: those that spill nothing there. Not measured.
TILES_BEFORE_90 = (Tile(16, 64, 32, 4), Tile(32, 64, 32, 4), Tile(64, 64, 32, 4), Tile(128, 64, 64, 8))
_K32 = numerics.CONTRACTION_GPU_FP32_BLOCK
TILES_FP32 = (Tile(16, 32, _K32, 4), Tile(16, 64, _K32, 4), Tile(32, 64, _K32, 4))
TILES_FP64 = (Tile(16, 32, 1, 4),)


def shipped(processor: Processor, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Those that may be chosen on a device, small ones first."""
    tiles = TILES if processor.capability >= 90 else TILES_BEFORE_90
    tiles = {torch.float32: TILES_FP32, torch.float64: TILES_FP64}.get(dtype, tiles)
    # On Blackwell a tile of 64 rows is summed in tensor memory, a smaller one by another family of
    # instructions that nobody has compared there; fp32 has small ones alone.
    one_family = processor.capability < 100 or dtype not in (torch.bfloat16, torch.float16)
    return tuple(tile for tile in tiles if one_family or tile.block_out >= 64)


def choose(processor: Processor, dtype: torch.dtype, groups: int, outputs: int, rows: int, k: int) -> Tile:
    """For so many output channels of each group, and positions of all samples.

    The largest tile that the channels fill and that leaves work for the whole device; else the smallest.
    """
    tiles = shipped(processor, dtype)
    if k % 16:
        # Weights that are not aligned are read one by one.
        return next((tile for tile in tiles if tile.block_at == 64), tiles[0])
    fitting = [tile for tile in tiles if tile.block_out <= max(16, outputs)] or tiles[:1]
    enough = 2 * processor.multiprocessors if dtype == torch.float32 else processor.multiprocessors // 2

    def programs(tile: Tile) -> int:
        return groups * -(-outputs // tile.block_out) * -(-rows // tile.block_at)

    busy = [tile for tile in fitting if programs(tile) >= enough]
    wide = [tile for tile in fitting if tile.block_out >= 32 and dtype != torch.float32]
    return busy[-1] if busy else (wide or fitting)[0]
