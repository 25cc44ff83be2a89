"""The ops of `contract.py` on CUDA devices: which kernel, in which configuration.

The configuration is chosen from M, N, K and the device (`gpu_configs.py`) at every call: all of them compute
the tree of `numerics.CONTRACTION_GPU_CHUNK`, so M decides the speed and never the bits. What follows from
shapes and strides alone is kept as a `_Plan`, for a call of few rows takes the host longer than the device.
"""

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from bi_compile import numerics
from bi_compile.templates.contraction import (
    epilogue,
    gpu_epilogue,
    gpu_grouped,
    gpu_halves,
    gpu_tuning,
)
from bi_compile.templates.contraction import gpu_kernels as kernels
from bi_compile.templates.contraction.gpu_configs import PRECISION, Config, choose, rows_of_whole_lines
from bi_compile.templates.contraction.gpu_descriptor_kernels import product_by_descriptors
from bi_compile.templates.gpu import device
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Descriptor, Launch
from bi_compile.templates.registry import implements

Tensor = torch.Tensor

_AT_A_TIME = 1024
_STRIDES = ("a_batch", "a_row", "a_k", "b_batch", "b_k", "b_column")
_C_STRIDES = ("c_batch", "c_row", "c_column")


class _Read(NamedTuple):
    """What a descriptor says of a tensor."""

    shape: list[int]
    strides: list[int]
    block: list[int]


@implements("mm")
def mm(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b)


@implements("bmm")
def bmm(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b)


@implements("addmm")
def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return product(a, b, c, beta=beta, alpha=alpha)


@implements("baddbmm")
def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return product(a, b, c, beta=beta, alpha=alpha)


@implements("linear")
def linear(
    x: Tensor, w: Tensor, bias: Tensor | None, other: Tensor | None = None, program: str | None = None
) -> Tensor:
    if x.dim() == 2:
        return product(x, w.t(), bias, other=other, program=program)
    rows = math.prod(x.shape[:-1])
    beside = None if other is None else other.reshape(rows, other.shape[-1])
    flat = product(x.reshape(rows, x.shape[-1]), w.t(), bias, other=beside, program=program)
    return flat.view(*x.shape[:-1], flat.shape[-1])


@implements("linear_epilogue")
def linear_epilogue(x: Tensor, w: Tensor, bias: Tensor | None, other: Tensor | None, program: str) -> Tensor:
    return linear(x, w, bias, other, program)


@implements("product_epilogue")
def product_epilogue(
    a: Tensor,
    b: Tensor,
    c: Tensor | None,
    other: Tensor | None,
    program: str,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Tensor:
    return product(a, b, c, beta=beta, alpha=alpha, other=other, program=program)


@implements("grouped_mm_epilogue")
def grouped_mm_epilogue(
    a: Tensor, b: Tensor, offs: Tensor | None, other: Tensor | None, program: str
) -> Tensor:
    if offs is None:
        return product(a, b, other=other, program=program)
    if epilogue.cuts(program):
        found = gpu_halves.side_by_side(a, b, offs, other, program)
        return (
            gpu_halves.finish(gpu_grouped.grouped_mm(a, b, offs), other, program) if found is None else found
        )
    return gpu_grouped.grouped_mm(a, b, offs, other, program)


def product(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    beta: Any = 1,
    alpha: Any = 1,
    other: Tensor | None = None,
    program: str | None = None,
    config: Config | None = None,
) -> Tensor:
    """alpha * (a x b) + beta * c: [M, K] x [K, N], or batches of them, + c broadcastable; contiguous.

    program: of `epilogue.py`, run on the rounded product; other: what else it reads.
    config: the configuration to use instead of the chosen one, for tests and tuning; fp64 has but one.
    """
    if program is not None and epilogue.cuts(program):
        alone = c is None and alpha == 1
        found = gpu_halves.side_by_side(a, b, None, other, program) if alone else None
        return (
            gpu_halves.finish(product(a, b, c, beta=beta, alpha=alpha), other, program)
            if found is None
            else found
        )
    if program is not None and a.dtype == torch.float64:
        return epilogue.run(program, product(a, b, c, beta=beta, alpha=alpha), other).contiguous()
    dtype = a.dtype if program is None else epilogue.result_dtype(program, a.dtype)
    out = a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=dtype)
    if out.numel() == 0:
        return out
    kind = "none"
    if c is not None and beta != 0:
        c = c.expand(out.shape)
        kind = "bias" if out.shape[-2] == 1 or c.stride(-2) == 0 else "matrix"
        kind += "" if beta == 1 else " scaled"
    # Without an addend a pointer that is never read.
    addend = _Addend(out, 1.0, kind) if kind == "none" or c is None else _Addend(c, float(beta), kind)
    if a.dtype == torch.float64:
        _in_double(a, b, out, addend, alpha)
        return out
    aligned = (a.data_ptr() | b.data_ptr()) % 16 == 0
    plan = _plan(
        a.device.index, a.dtype, a.shape, a.stride(), b.shape, b.stride(), aligned, kind, addend.strides,
        float(alpha), addend.beta, program, config,
    )  # fmt: skip
    # Without another tensor one of the product's dtype that is never read.
    plan.launch(a, b, addend.c, a if other is None else other.contiguous(), out)
    return out


def tune(
    shapes: Iterable[tuple[int, int]] = gpu_tuning.SHAPES,
    dtype: torch.dtype = torch.bfloat16,
    rows: Iterable[int] = gpu_tuning.ROWS,
) -> Path:
    """Measure the configurations for weights [N, K] on the current device; calls use what was found.

    Returns the file it is kept in. Raises TuningError, see `gpu_tuning.tune`.
    """
    file = gpu_tuning.tune(product, shapes, dtype, rows)
    _plan.cache_clear()
    return file


class _Addend(NamedTuple):
    """beta * c as the kernels take it, expanded to the result."""

    c: Tensor
    beta: float
    kind: str

    @property
    def strides(self) -> tuple[int, ...]:
        return _strides(self.c.shape, self.c.stride())


class _Plan(NamedTuple):
    """How a product of given shapes, strides and scales is launched."""

    product: Launch
    read: tuple[_Read | None, ...]
    """How descriptors read a, b and b's further columns; none for pointers."""
    chains: tuple[int, ...] | None
    """The shape of the chunks' sums, where chunks are summed in parallel."""
    adding: Launch | None
    """What adds these."""
    finishing: Launch | None = None
    """What runs an epilogue on the stored product, if its own kernel does not."""
    waiting: tuple[int, int] | None = None
    """The shape of what waits of sums, by programs, where registers do not hold them."""

    def launch(self, a: Tensor, b: Tensor, c: Tensor, other: Tensor, out: Tensor) -> None:
        to, addend = out, c
        if self.finishing is not None:
            # In place, unless the epilogue changes the dtype.
            to = out if out.dtype == a.dtype else out.new_empty(out.shape, dtype=a.dtype)
        elif self.chains is not None:
            to, addend = out.new_empty(self.chains, dtype=torch.float32), out
        if self.read:
            descriptors = [
                Descriptor(base, *read) if read else None
                for base, read in zip((a, b, b), self.read, strict=True)
            ]
            # Where nothing waits a pointer that is never read.
            waiting = out.new_empty(self.waiting, dtype=torch.float32) if self.waiting else out
            self.product(to, addend, other, waiting, descriptors=descriptors)
        else:
            self.product(a, b, addend, other, to)
        if self.adding is not None:
            self.adding(to, c, other, out)
        if self.finishing is not None:
            self.finishing(to, other, out)


@functools.lru_cache(maxsize=65536)
def _plan(
    index: int,
    dtype: torch.dtype,
    a_shape: torch.Size,
    a_strides: tuple[int, ...],
    b_shape: torch.Size,
    b_strides: tuple[int, ...],
    aligned: bool,
    kind: str,
    c_strides: tuple[int, ...],
    alpha: float,
    beta: float,
    program: str | None,
    config: Config | None,
) -> _Plan:
    *batches, m, k = a_shape
    batch, n = math.prod(batches), b_shape[-1]
    by_column = b_strides[-2] == 1
    second = (*b_shape[::-1], *b_strides[::-1]) if by_column else (*b_shape, *b_strides)
    described = (
        len(a_shape) == 2
        and k > 0
        and aligned
        and rows_of_whole_lines(*a_shape, *a_strides, dtype.itemsize)
        and rows_of_whole_lines(*second, dtype.itemsize)
    )
    here = device.processor(index)
    if config is None and described:
        config = gpu_tuning.lookup(index, dtype, m, n, k)
    if config is None:
        config = choose(here, dtype, batch, m, n, k, described)
    chunk = numerics.contraction_gpu_chunk(dtype.itemsize)
    assert chunk % config.block_k == 0, "a block of K would reach into the next chunk"
    chunks = triton.cdiv(k, chunk)
    parallel = chunks > 1 and config.parallel
    finish = {"alpha": alpha, "beta": beta, **dict(zip(_C_STRIDES, c_strides, strict=True))}
    choice = {"SCALE": alpha != 1, "ADDEND": kind, "EPILOGUE": gpu_epilogue.function(program, dtype)}
    adding = finishing = None
    if parallel:
        grid = (triton.cdiv(batch * m * n, _AT_A_TIME),)
        arguments = {"batch": batch, "M": m, "N": n, "chunks": chunks, "BLOCK": _AT_A_TIME}
        adding = Launch(kernels.add_chunks, grid, {**arguments, **finish, **choice, **COMPILATION})
        choice = {"SCALE": False, "ADDEND": "none", "EPILOGUE": None}
    elif (
        program is not None
        and epilogue.is_heavy(program)
        and not config.finishes(here, dtype.itemsize, batch, m, n)
    ):
        finishing = gpu_epilogue.finishing(program, dtype, batch, m, n)
        choice["EPILOGUE"] = None
    form = "one" if chunks <= 1 else "parallel" if parallel else "sequence"
    settings = {
        "M": m,
        "N": n,
        "K": k,
        **finish,
        **choice,
        "CHUNK": chunk,
        "CHUNKS": form,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
        "PIECE": config.stored_at_a_time(here.capability, choice["ADDEND"], choice["EPILOGUE"] is not None),
        "PRECISION": PRECISION[dtype],
        "SWAP": config.swap,
        **config.options(here.capability, form),
        **COMPILATION,
    }
    chains = (chunks, *a_shape[:-1], n) if parallel else None
    if described and config.descriptors:
        del settings["c_batch"]
        waits = config.waits(here.capability, form)
        settings |= {"BY_COLUMN": by_column, "MORE": config.more, "WAITS": waits}
        down, across = triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n + config.more)
        tiles = down * across
        programs = min(
            tiles * (chunks if parallel else 1), here.multiprocessors * config.resident(here, dtype.itemsize)
        )
        settings |= {"tiles": tiles, "tiles_m": down, "tiles_n": across, "programs": programs}
        launch = Launch(product_by_descriptors, (programs,), settings)
        rows = _Read([m, k], [a_strides[0], 1], [config.block_m, config.block_k])
        widths = [config.block_n, config.more]
        columns = [_columns(n, k, b_strides, by_column, width, config.block_k) for width in widths]
        waiting = (programs, config.block_m * config.block_n // 4) if waits else None
        return _Plan(launch, (rows, *columns), chains, adding, finishing, waiting)
    strides = (*_strides(a_shape, a_strides), *_strides(b_shape, b_strides))
    settings |= {"EVEN_K": k % config.block_k == 0, **dict(zip(_STRIDES, strides, strict=True))}
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
    grid = (tiles * batch, chunks if parallel else 1)
    return _Plan(Launch(kernels.product, grid, settings), (), chains, adding, finishing)


def _columns(
    n: int, k: int, strides: tuple[int, ...], by_column: bool, width: int, block_k: int
) -> _Read | None:
    """b, or b transposed if that is how it lies in memory, in blocks of `width` columns, if that is any."""
    if width == 0:
        return None
    if by_column:
        return _Read([n, k], [strides[1], 1], [width, block_k])
    return _Read([k, n], [strides[0], 1], [block_k, width])


def _strides(shape: torch.Size, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Of a batch of matrices; a matrix alone has no next one, and 0 says nothing about M to the compiler."""
    return strides if len(shape) == 3 and shape[0] > 1 else (0, *strides[-2:])


def _in_double(a: Tensor, b: Tensor, out: Tensor, addend: _Addend, alpha: Any) -> None:
    *batches, m, k = a.shape
    batch, n = math.prod(batches), b.shape[-1]
    scales = out
    if alpha != 1 or addend.kind.endswith("scaled"):
        # Filled on the device: a copy from the host could not be captured in a CUDA graph.
        scales = torch.full((2,), float(alpha), dtype=torch.float64, device=out.device)
        scales[1:].fill_(addend.beta)
    kernels.product_in_double[(triton.cdiv(m, 16) * triton.cdiv(n, 32) * batch,)](
        a, b, addend.c, out, scales, m, n, k, *_strides(a.shape, a.stride()), *_strides(b.shape, b.stride()),
        *addend.strides, CHUNK=numerics.CONTRACTION_CHUNK, BLOCK_M=16, BLOCK_N=32,
        SCALE=alpha != 1, ADDEND=addend.kind, **COMPILATION,
    )  # fmt: skip
