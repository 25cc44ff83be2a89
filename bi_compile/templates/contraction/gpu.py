"""The ops of `contract.py` on CUDA devices: which kernel, in which configuration.

The configuration is chosen from M, N, K and the device (`gpu_configs.py`) at every call: all of them compute
the tree of `numerics.CONTRACTION_GPU_CHUNK`, so M decides the speed and never the bits. What follows from
shapes and strides alone is kept as a `_Plan`, for a call of few rows takes the host longer than the device.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from bi_compile import numerics
from bi_compile.templates.contraction import gpu_kernels as kernels
from bi_compile.templates.contraction import gpu_tuning
from bi_compile.templates.contraction.gpu_configs import Config, choose
from bi_compile.templates.gpu import device
from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.registry import implements

Tensor = torch.Tensor

_PRECISION = {torch.float32: "tf32x3", torch.bfloat16: "ieee", torch.float16: "ieee"}
_ADDED_AT_A_TIME = 1024


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
def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    if x.dim() == 2:
        return product(x, w.t(), bias)
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return product(flat, w.t(), bias).view(*x.shape[:-1], w.shape[0])


def product(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    beta: Any = 1,
    alpha: Any = 1,
    config: Config | None = None,
) -> Tensor:
    """alpha * (a x b) + beta * c: [M, K] x [K, N], or batches of them, + c broadcastable; contiguous.

    config: the configuration to use instead of the chosen one, for tests and tuning; fp64 has but one.
    """
    out = a.new_empty((*a.shape[:-1], b.shape[-1]))
    if out.numel() == 0:
        return out
    kind = "none"
    if c is not None and beta != 0:
        c = c.expand(out.shape)
        kind = "bias" if out.shape[-2] == 1 or c.stride(-2) == 0 else "matrix"
        kind += "" if beta == 1 else " scaled"
    addend = _Addend(out, 1.0, kind) if kind == "none" or c is None else _Addend(c, float(beta), kind)
    if a.dtype == torch.float64:
        _in_double(a, b, out, addend, alpha)
        return out
    aligned = (a.data_ptr() | b.data_ptr()) % 16 == 0
    plan = _plan(
        a.device.index, a.dtype, a.shape, a.stride(), b.shape, b.stride(), aligned, kind, alpha != 1, config
    )
    plan.launch(a, b, out, addend, float(alpha))
    return out


class _Addend(NamedTuple):
    """beta * c as the kernels take it, expanded to the result; if "none", a pointer that is never read."""

    c: Tensor
    beta: float
    kind: str

    @property
    def strides(self) -> tuple[int, ...]:
        return _strides(self.c.shape, self.c.stride())


class _Plan(NamedTuple):
    """How a product of given shapes and strides is launched."""

    config: Config
    batch: int
    m: int
    n: int
    k: int
    chunks: int
    parallel: bool
    by_descriptors: bool
    by_column: bool
    grid: tuple[int, ...]
    settings: Mapping[str, Any]

    def launch(self, a: Tensor, b: Tensor, out: Tensor, addend: _Addend, alpha: float) -> None:
        to, added = out, addend
        if self.parallel:
            to = torch.empty((self.chunks, *out.shape), dtype=torch.float32, device=out.device)
            added = _Addend(out, 1.0, "none")
        c, beta, _ = added
        if self.by_descriptors:
            config = self.config
            second = b.t() if self.by_column else b
            kernels.product_by_descriptors[self.grid](
                TensorDescriptor(a, [self.m, self.k], [a.stride(0), 1], [config.block_m, config.block_k]),
                self._columns(second, config.block_n),
                self._columns(second, config.more) if config.more else None,
                to, c, self.m, self.n, self.k, alpha, beta, *added.strides[1:], **self.settings,
            )  # fmt: skip
        else:
            kernels.product[self.grid](
                a, b, c, to, self.m, self.n, self.k, alpha, beta, *_strides(a.shape, a.stride()),
                *_strides(b.shape, b.stride()), *added.strides, **self.settings,
            )  # fmt: skip
        if self.parallel:
            kernels.add_chunks[(triton.cdiv(out.numel(), _ADDED_AT_A_TIME),)](
                to, addend.c, out, self.batch, self.m, self.n, self.chunks, alpha, addend.beta,
                *addend.strides, BLOCK=_ADDED_AT_A_TIME, SCALE=alpha != 1, ADDEND=addend.kind, **COMPILATION,
            )  # fmt: skip

    def _columns(self, b: Tensor, width: int) -> TensorDescriptor:
        """b, or b transposed if that is how it lies in memory, in blocks of `width` columns."""
        if self.by_column:
            shape, block = [self.n, self.k], [width, self.config.block_k]
        else:
            shape, block = [self.k, self.n], [self.config.block_k, width]
        return TensorDescriptor(b, shape, [b.stride(0), 1], block)


@functools.lru_cache(maxsize=65536)
def _plan(
    index: int,
    dtype: torch.dtype,
    a_shape: torch.Size,
    a_strides: tuple[int, ...],
    b_shape: torch.Size,
    b_strides: tuple[int, ...],
    aligned: bool,
    addend: str,
    scale: bool,
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
        and _rows_of_whole_lines(*a_shape, *a_strides, dtype.itemsize)
        and _rows_of_whole_lines(*second, dtype.itemsize)
    )
    here = device.processor(index)
    if config is None and described:
        config = gpu_tuning.lookup(index, dtype, m, n, k)
    if config is None:
        config = choose(here, dtype, batch, m, n, k, described)
    by_descriptors = described and config.descriptors
    chunk = numerics.contraction_gpu_chunk(dtype.itemsize)
    assert chunk % config.block_k == 0, "a block of K would reach into the next chunk"
    chunks = triton.cdiv(k, chunk)
    parallel = chunks > 1 and config.parallel
    settings = {
        "CHUNK": chunk,
        "CHUNKS": "one" if chunks <= 1 else "parallel" if parallel else "sequence",
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
        "PRECISION": _PRECISION[dtype],
        "SWAP": config.swap,
        "SCALE": scale and not parallel,
        "ADDEND": "none" if parallel else addend,
        "num_warps": config.warps,
        "num_stages": config.stages,
        **COMPILATION,
    }
    width = config.block_n + (config.more if by_descriptors else 0)
    tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, width)
    if by_descriptors:
        settings |= {"BY_COLUMN": by_column, "MORE": config.more}
        at_a_time = here.multiprocessors * config.resident(here, dtype.itemsize)
        grid = (min(tiles * (chunks if parallel else 1), at_a_time),)
    else:
        settings["EVEN_K"] = k % config.block_k == 0
        grid = (tiles * batch, chunks if parallel else 1)
    return _Plan(config, batch, m, n, k, chunks, parallel, by_descriptors, by_column, grid, settings)


def _rows_of_whole_lines(rows: int, columns: int, row: int, column: int, size: int) -> bool:
    """Whether the tensor memory accelerator can read a matrix of these strides: rows of whole 16 bytes."""
    return column == 1 and row >= columns and row * size % 16 == 0 and rows > 0


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
