"""Products that an epilogue cuts in two on CUDA devices: summed side by side, or stored and then finished."""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton

from bi_compile import numerics
from bi_compile.templates.contraction import epilogue, gpu_epilogue, gpu_tuning
from bi_compile.templates.contraction import gpu_halves_kernels as kernels
from bi_compile.templates.contraction.gpu_configs import PRECISION, Config, choose
from bi_compile.templates.contraction.gpu_grouped import read_as_one
from bi_compile.templates.gpu import device
from bi_compile.templates.gpu.device import ALL_REGISTERS, COMPILATION, Processor
from bi_compile.templates.gpu.launch import Descriptor, Launch
from bi_compile.templates.gpu.row_view import power_of_two

Tensor = torch.Tensor

_AT_A_TIME = 1024


class _Plan(NamedTuple):
    product: Launch
    read: list[tuple[list[int], ...]]
    """How descriptors read a and b: shape, strides and block."""


def finish(rounded: Tensor, other: Tensor | None, program: str) -> Tensor:
    """The program on a stored product."""
    if rounded.dtype == torch.float64:
        return epilogue.run(program, rounded, other).contiguous()
    shape = epilogue.shape_of(program, rounded.shape)
    out = rounded.new_empty(shape, dtype=epilogue.result_dtype(program, rounded.dtype))
    if out.numel():
        launch = _finishing(program, rounded.dtype, math.prod(shape[:-1]), shape[-1])
        launch(rounded, rounded if other is None else other.contiguous(), out)
    return out


@functools.lru_cache(maxsize=65536)
def _finishing(program: str, dtype: torch.dtype, rows: int, n: int) -> Launch:
    choice = {"BLOCK": _AT_A_TIME, "EPILOGUE": gpu_epilogue.function(program, dtype), **COMPILATION}
    return Launch(kernels.finish_halves, (rows, triton.cdiv(n, _AT_A_TIME)), {"N": n, **choice})


def side_by_side(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None,
    other: Tensor | None,
    program: str,
    *,
    config: Config | None = None,
) -> Tensor | None:
    """The program on a x b, of groups of rows if there are offs, or None where the product is to be stored.

    config: instead of the chosen one, for tests; its block_n holds both halves of a tile.
    """
    rows_of_one = offs is None and b.dim() == 2
    rows_of_groups = offs is not None and offs.shape[0] > 0 and (a.dim(), b.dim()) == (2, 3)
    if a.dtype == torch.float64 or not (rows_of_one or rows_of_groups):
        return None
    groups = 0 if offs is None else offs.shape[0]
    aligned = (a.data_ptr() | b.data_ptr()) % 16 == 0
    shapes = (a.shape, a.stride(), b.shape, b.stride())
    plan = _plan(a.device.index, a.dtype, groups, *shapes, aligned, program, config)
    if plan is None:
        return None
    n = b.shape[-1] // 2
    out = a.new_empty((a.shape[0], n), dtype=epilogue.result_dtype(program, a.dtype))
    descriptors = [Descriptor(x, *how) for x, how in zip((a, b), plan.read, strict=True)]
    # Without other tensors those of the right dtypes that are never read.
    beside, ends = a if other is None else other.contiguous(), a if offs is None else offs.contiguous()
    plan.product(ends, beside, out, descriptors=descriptors)
    return out


@functools.lru_cache(maxsize=65536)
def _plan(
    index: int,
    dtype: torch.dtype,
    groups: int,
    a_shape: torch.Size,
    a_strides: tuple[int, ...],
    b_shape: torch.Size,
    b_strides: tuple[int, ...],
    aligned: bool,
    program: str,
    config: Config | None,
) -> _Plan | None:
    (m, k), n = a_shape, b_shape[-1]
    here = device.processor(index)
    by_column = b_strides[-2] == 1
    matrices = b_shape if groups else (1, *b_shape)
    strides = b_strides if groups else (k * n, *b_strides)
    if not aligned or min(m, n, k) == 0 or not read_as_one(a_shape, a_strides, matrices, strides, dtype):
        return None
    if config is None:
        config = _chosen(here, index, dtype, groups, m, n, k)
    # A block of K may not reach into the matrix below.
    if config is None or not (by_column or not groups or k % config.block_k == 0):
        return None
    chunk, each = numerics.contraction_gpu_chunk(dtype.itemsize), config.block_n // 2
    tiles = _tiles(config, groups, m, n)
    settings: dict[str, Any] = {
        "total": m, "groups": groups, "N": n // 2, "K": k,
        "GROUPS": power_of_two(groups + 1) if groups else 0, "CHUNK": chunk, "CHUNKED": k > chunk,
        "BLOCK_M": config.block_m, "BLOCK_N": each, "BLOCK_K": config.block_k, "GROUP_M": 8,
        "PIECE": config.piece, "PRECISION": PRECISION[dtype], "SWAP": config.swap, "BY_COLUMN": by_column,
        "EPILOGUE": gpu_epilogue.function(program, dtype),
        # With two sums and an epilogue they may all be needed.
        **(config.options(here.capability) | ALL_REGISTERS), **COMPILATION,
    }  # fmt: skip
    at_a_time = here.multiprocessors * config.resident(here, dtype.itemsize)
    launch = Launch(kernels.halves_by_descriptors, (min(tiles, at_a_time),), settings)
    matrix, row = math.prod(matrices[:-2]), strides[-1] if by_column else strides[-2]
    shape = [matrix * n, k] if by_column else [matrix * k, n]
    block = [each, config.block_k] if by_column else [config.block_k, each]
    rows = ([m, k], [a_strides[0], 1], [config.block_m, config.block_k])
    return _Plan(launch, [rows, (shape, [row, 1], block)])


def _chosen(
    here: Processor, index: int, dtype: torch.dtype, groups: int, m: int, n: int, k: int
) -> Config | None:
    """The configuration of the product, if half of its columns may be another half's.

    A wave of small tiles: beyond, nothing runs beside the epilogue, and a kernel of its own is faster.
    """
    if groups:
        config = choose(here, dtype, min(groups, m), triton.cdiv(m, groups), n, k, True, plain=True)
    else:
        config = gpu_tuning.lookup(index, dtype, m, n, k) or choose(here, dtype, 1, m, n, k, True)
    tile = tile_of(config)
    if tile is None or config.parallel:
        return None
    at_a_time = here.multiprocessors * tile.resident(here, dtype.itemsize)
    return tile if _tiles(tile, groups, m, n) <= at_a_time else None


def tile_of(config: Config) -> Config | None:
    """A configuration of products for two halves side by side, which its block_n then holds."""
    if not config.descriptors or config.wide or config.large or config.block_n < 32:
        return None
    # Swapped, each half fills the 64 rows of an instruction.
    return config._replace(block_n=2 * config.block_n, block_k=128) if config.swap else config


def _tiles(config: Config, groups: int, m: int, n: int) -> int:
    """At most; one more group is what lies behind the last."""
    rows = triton.cdiv(m, config.block_m)
    return (min(m, rows + groups) if groups else rows) * triton.cdiv(n, config.block_n)
