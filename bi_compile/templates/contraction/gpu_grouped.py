"""`grouped_mm`, alone and with an epilogue, on CUDA devices: which kernel, in which configuration."""

import functools
import math
from typing import Any, NamedTuple

import torch
import triton

from bi_compile import numerics
from bi_compile.templates.contraction import epilogue, gpu_epilogue
from bi_compile.templates.contraction import gpu_grouped_kernels as kernels
from bi_compile.templates.contraction.gpu_configs import PRECISION, Config, choose, rows_of_whole_lines
from bi_compile.templates.gpu import device
from bi_compile.templates.gpu.device import COMPILATION, Processor
from bi_compile.templates.gpu.launch import Descriptor, Launch
from bi_compile.templates.gpu.row_view import power_of_two
from bi_compile.templates.registry import implements

Tensor = torch.Tensor

_DOUBLE = Config(16, 32, 1, 4, 1)


@implements("grouped_mm")
def grouped_mm(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None,
    other: Tensor | None = None,
    program: str | None = None,
    *,
    config: Config | None = None,
) -> Tensor:
    """program: of `epilogue.py`, run on the rounded product, not to be cut; other: what else it reads.

    config: instead of the chosen one, for tests; fp64 has but one.
    """
    if offs is None:
        return torch.ops.bi_compile.bmm(a, b)
    groups = offs.shape[0]
    if program is not None and (a.dtype == torch.float64 or groups == 0):
        return epilogue.run(program, grouped_mm(a, b, offs), other).contiguous()
    leading = (groups,) if a.dim() == b.dim() else ()
    if groups == 0:
        return a.new_zeros((*leading, a.shape[-2], b.shape[-1]))
    dtype = a.dtype if program is None else epilogue.result_dtype(program, a.dtype)
    out = a.new_empty((*leading, a.shape[-2], b.shape[-1]), dtype=dtype)
    if out.numel():
        aligned = (a.data_ptr() | b.data_ptr()) % 16 == 0
        shapes = (a.shape, a.stride(), b.shape, b.stride())
        plan = _plan(a.device.index, a.dtype, offs.dtype, groups, *shapes, aligned, program, config)
        # Without another tensor one of the product's dtype that is never read.
        plan.launch(a, b, offs.contiguous(), a if other is None else other.contiguous(), out)
    return out


class _Plan(NamedTuple):
    """How a product of given shapes and strides is launched."""

    product: Launch
    read: list[tuple[list[int], ...]]
    """How descriptors read a and b, if they do: shape, strides and block."""
    finishing: Launch | None
    """What runs an epilogue on the stored product, if its own kernel does not."""

    def launch(self, a: Tensor, b: Tensor, offs: Tensor, other: Tensor, out: Tensor) -> None:
        # In place, unless the epilogue changes the dtype.
        stored = self.finishing is None or out.dtype == a.dtype
        to = out if stored else out.new_empty(out.shape, dtype=a.dtype)
        if self.read:
            descriptors = [Descriptor(x, *how) for x, how in zip((a, b), self.read, strict=True)]
            self.product(offs, other, to, descriptors=descriptors)
        else:
            self.product(a, b, offs, other, to)
        if self.finishing is not None:
            self.finishing(to, other, out)


@functools.lru_cache(maxsize=65536)
def _plan(
    index: int,
    dtype: torch.dtype,
    ends: torch.dtype,
    groups: int,
    a_shape: torch.Size,
    a_strides: tuple[int, ...],
    b_shape: torch.Size,
    b_strides: tuple[int, ...],
    aligned: bool,
    program: str | None,
    config: Config | None,
) -> _Plan:
    (m, k), n = a_shape[-2:], b_shape[-1]
    cut = "K" if len(a_shape) == len(b_shape) else "M" if len(b_shape) == 3 else "N"
    total = {"M": m, "N": n, "K": k}[cut]
    each = triton.cdiv(total, groups)
    by_column = b_strides[-2] == 1
    described = (
        aligned and cut == "M" and k > 0 and read_as_one(a_shape, a_strides, b_shape, b_strides, dtype)
    )
    here = device.processor(index)
    if dtype == torch.float64:
        config = _DOUBLE
    elif config is None:
        extents = tuple(({"M": m, "N": n, "K": k} | {cut: each}).values())
        config = choose(here, dtype, min(groups, total), *extents, described, plain=True)
        if described and not _whole(by_column, k, config):
            described = False
            config = choose(here, dtype, min(groups, total), *extents, described, plain=True)
    double = dtype == torch.float64
    chunk = numerics.CONTRACTION_CHUNK if double else numerics.contraction_gpu_chunk(dtype.itemsize)
    assert chunk % config.block_k == 0, "a block of K would reach into the next chunk"
    block = {"M": config.block_m, "N": config.block_n, "K": 1}[cut]
    # One more group for what lies behind the last; no tile is without a row.
    most = min(total, triton.cdiv(total, block) + groups)
    tiles_m = most if cut == "M" else triton.cdiv(m, config.block_m)
    tiles_n = most if cut == "N" else triton.cdiv(n, config.block_n)
    tiles = tiles_m * tiles_n * (groups if cut == "K" else 1)
    heavy = program is not None and epilogue.is_heavy(program)
    apart = heavy and not _finishes(config, here, dtype.itemsize, tiles)
    finishing = gpu_epilogue.finishing(program, dtype, groups if cut == "K" else 1, m, n) if apart else None
    settings: dict[str, Any] = {
        "total": total, "groups": groups, "N": n, "K": k, "GROUPS": power_of_two(groups + 1), "CHUNK": chunk,
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": 8,
        "PRECISION": PRECISION[dtype], "SWAP": config.swap, "CHUNKED": cut == "K" or k > chunk,
        "PIECE": config.piece, "EPILOGUE": gpu_epilogue.function(None if apart else program, dtype),
        **options(config, here.capability, cut == "K" or k > chunk, program), **COMPILATION,
    }  # fmt: skip
    if described and config.descriptors and _whole(by_column, k, config):
        at_a_time = here.multiprocessors * config.resident(here, dtype.itemsize)
        launch = Launch(
            kernels.grouped_rows_by_descriptors,
            (min(tiles, at_a_time),),
            settings | {"BY_COLUMN": by_column},
        )
        shape, row = ([groups * n, k], b_strides[2]) if by_column else ([groups * k, n], b_strides[1])
        block_b = [config.block_n, config.block_k] if by_column else [config.block_k, config.block_n]
        rows = ([m, k], [a_strides[0], 1], [config.block_m, config.block_k])
        return _Plan(launch, [rows, (shape, [row, 1], block_b)], finishing)
    settings |= {
        "M": m, "tiles_m": tiles_m, "tiles_n": tiles_n, "CUT": cut,
        **dict(zip(("a_group", "a_row", "a_k"), (0, *a_strides)[-3:], strict=True)),
        **dict(zip(("b_group", "b_k", "b_column"), (0, *b_strides)[-3:], strict=True)),
        "out_group": m * n if cut == "K" else 0, "out_row": n,
        "EVEN_K": cut != "K" and k % config.block_k == 0,
    }  # fmt: skip
    return _Plan(Launch(kernels.grouped_product, (tiles,), settings), [], finishing)


def _finishes(config: Config, processor: Processor, element_size: int, tiles: int) -> bool:
    """Whether the product's own kernel works out a heavy epilogue, as `Config.finishes` has it."""
    return not config.large and tiles <= processor.multiprocessors * config.resident(processor, element_size)


def options(config: Config, capability: int, chunked: bool, program: str | None) -> dict[str, int]:
    """Triton's. Two sums of a tile and an epilogue may need all registers."""
    return config.options(capability, "sequence" if chunked and program is not None else "one")


def _whole(by_column: bool, k: int, config: Config) -> bool:
    """Whether no block of K reaches into the matrix below, where that lies along K."""
    return by_column or k % config.block_k == 0


def read_as_one(
    a_shape: torch.Size,
    a_strides: tuple[int, ...],
    b_shape: torch.Size,
    b_strides: tuple[int, ...],
    dtype: torch.dtype,
) -> bool:
    """Whether descriptors can read rows a and all matrices of b below one another."""
    _, k, n = b_shape
    group, *strides = b_strides
    rows, second = (n, (k, n)) if strides[0] == 1 else (k, (n, k))
    along, row = (strides[0], strides[1]) if strides[0] == 1 else (strides[1], strides[0])
    return (
        rows_of_whole_lines(*a_shape, *a_strides, dtype.itemsize)
        and group == rows * row
        and math.prod(b_shape[:2]) < 2**31
        and rows_of_whole_lines(rows, second[0], row, along, dtype.itemsize)
    )
