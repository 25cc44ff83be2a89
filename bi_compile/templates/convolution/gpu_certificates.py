"""The order of summation of every tile, read off what the compiler makes of it; no GPU is needed."""

from typing import Any

import torch

from bi_compile import numerics
from bi_compile.templates.convolution import gpu_kernels as kernels
from bi_compile.templates.convolution.gpu_depthwise import Block, depthwise
from bi_compile.templates.convolution.gpu_tiles import Tile
from bi_compile.templates.gpu.ahead import compile_kernel
from bi_compile.templates.gpu.certificate import Certificate, certificate

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def order(tile: Tile, dtype: torch.dtype, capability: int, chunked: bool = False) -> Certificate:
    """The certificate of a convolution. Raises ValueError for what is not followed.

    chunked: of one whose K is longer than a chunk.
    """
    return certificate(compile_convolution(tile, dtype, capability, chunked))


def compile_convolution(tile: Tile, dtype: torch.dtype, capability: int, chunked: bool = False) -> Any:
    """The kernel of a 3 x 3 convolution with bias, compiled for a capability."""
    tensors = ("x", "w", "bias", "out")
    constants: dict[str, Any] = {
        "size_0": 1, "grid_0": 1, "TAPS": (1, 3, 3), "STRIDE": (1, 1, 1), "DILATION": (1, 1, 1),
        "BIAS": True, "WIDE": False,
        "CHUNK": numerics.contraction_gpu_chunk(dtype.itemsize), "CHUNKED": chunked, "WHOLE": True,
        "BLOCK_OUT": tile.block_out, "BLOCK_AT": tile.block_at, "BLOCK_K": tile.block_k,
        "PIECE": tile.piece,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
    }  # fmt: skip
    types = dict.fromkeys(kernels.correlate.arg_names, "i32") | dict.fromkeys(tensors, f"*{_NAMES[dtype]}")
    return compile_kernel(kernels.correlate, capability, types, constants, **tile.options(capability))


def order_depthwise(block: Block, dtype: torch.dtype, capability: int) -> Certificate:
    """The certificate of a depthwise convolution of 2 x 2 taps."""
    return certificate(compile_depthwise(block, dtype, capability, 2))


def compile_depthwise(block: Block, dtype: torch.dtype, capability: int, taps: int) -> Any:
    """The kernel of a depthwise convolution of taps x taps with bias, compiled for a capability."""
    tensors = ("x", "w", "bias", "out")
    constants: dict[str, Any] = {
        "size_0": 1, "grid_0": 1, "outputs": 1, "TAPS": (1, taps, taps), "STRIDE": (1, 1, 1),
        "DILATION": (1, 1, 1), "BIAS": True, "WIDE": False, "LANES": block.lanes, "COLUMNS": 16,
        "ROWS": block.rows, "SPAN": block.rows + taps - 1,
    }  # fmt: skip
    types = dict.fromkeys(depthwise.arg_names, "i32") | dict.fromkeys(tensors, f"*{_NAMES[dtype]}")
    return compile_kernel(depthwise, capability, types, constants, num_warps=block.warps, num_stages=3)
