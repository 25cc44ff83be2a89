"""The steps of attention, read off what the compiler makes of it; no GPU is needed."""

import torch

from bi_compile.templates.attention.gpu_kernels import attend
from bi_compile.templates.attention.gpu_tiles import Pieces, Tile
from bi_compile.templates.gpu.ahead import NAMES, compile_kernel
from bi_compile.templates.gpu.row_view import power_of_two
from bi_compile.templates.gpu.steps import Steps, certified

_NUMBERS = ("before", "softcap", "scale", "unit", "least", "lowest", "zero")


def order(dtype: torch.dtype, size: int, capability: int) -> Steps:
    """Of heads of `size`: those of the tile for few rows, whose steps all tiles have.

    Raises ValueError where they leave an order open.
    """
    dims = max(16, power_of_two(size))
    tile = Tile.choose(16, dims, dtype, False, False, capability >= 100, None, 2**17)
    pieces = Pieces.of(tile.rows, dims, dims, dtype)
    types = dict.fromkeys(attend.arg_names, "i32") | dict.fromkeys(_NUMBERS, "fp32")
    types |= dict.fromkeys(
        ("q", "k", "v", "k_map", "k_rest", "v_map", "v_rest", "mask", "out"), f"*{NAMES[dtype]}"
    )
    types |= dict.fromkeys(("begins", "wholes", "ends", "lse", "parts", "states", "held"), "*fp32")
    types["flags"] = "*i32"
    constants = {
        "SIZE": size, "VALUE_SIZE": size, "DIMS": pieces.dims, "REST": 0,
        "VALUE_DIMS": pieces.value_dims, "VALUE_REST": 0, "VALUE_KEYS": pieces.value_keys, "GROUP": 1,
        "BLOCK_M": tile.rows,
        "BINARY": dtype != torch.float32, "NATURAL": False, "CAPPED": False, "MASK": 0, "CAUSAL": False,
        "PARALLEL": False, "ONE_SPLIT": False, "MAPS": False, "FLAGGED": False, "APART": False,
        "CAREFUL": False, "ROWS_OF_TILE": tile.rows, "IN_TURNS": False, "EARLY": capability >= 90,
        "FEW": 0, "PAIRED": False, "STAGES": tile.stages, "HELD": 0, "LINE": 1, "LATE": False,
        "q_dim": 1, "k_dim": 1, "v_dim": 1,
    }  # fmt: skip
    kernel = compile_kernel(
        attend, capability, types, constants, num_warps=tile.warps, num_stages=tile.stages
    )
    return certified(kernel)
