"""The ops of `contract.py` on CUDA devices: which kernel, in which configuration.

The configuration is chosen at every call from M, N, K and the device (`gpu_configs.py`): all of them compute
the tree of `numerics.CONTRACTION_GPU_CHUNK`, so M decides the speed and never the bits.
"""

import math
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from bi_compile import numerics
from bi_compile.templates.contraction import gpu_kernels as kernels
from bi_compile.templates.contraction.gpu_configs import Config, choose
from bi_compile.templates.gpu import device
from bi_compile.templates.gpu.device import COMPILATION, Processor
from bi_compile.templates.registry import implements

Tensor = torch.Tensor

_PRECISION = {torch.float32: "tf32x3", torch.bfloat16: "ieee", torch.float16: "ieee"}


@implements("mm")
def mm(a: Tensor, b: Tensor) -> Tensor:
    return product(a.unsqueeze(0), b.unsqueeze(0)).squeeze(0)


@implements("bmm")
def bmm(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b)


@implements("addmm")
def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return product(a.unsqueeze(0), b.unsqueeze(0), c, beta=beta, alpha=alpha).squeeze(0)


@implements("baddbmm")
def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return product(a, b, c, beta=beta, alpha=alpha)


@implements("linear")
def linear(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return product(flat.unsqueeze(0), w.t().unsqueeze(0), bias).reshape(*x.shape[:-1], w.shape[0])


def product(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    beta: Any = 1,
    alpha: Any = 1,
    config: Config | None = None,
) -> Tensor:
    """alpha * (a x b) + beta * c: [B, M, K] x [B, K, N] + c broadcastable to [B, M, N], contiguous.

    config: the configuration to use instead of the chosen one, for tests and tuning; fp64 has but one.
    """
    batch, m, k = a.shape
    n = b.shape[2]
    out = a.new_empty(batch, m, n)
    if out.numel() == 0:
        return out
    addend = _Addend.of(c, beta, out)
    if a.dtype == torch.float64:
        _in_double(a, b, out, addend, alpha)
        return out
    processor = device.processor(a.device.index)
    if config is None:
        described = batch == 1 and _describable(a[0], b[0])
        config = choose(processor, a.dtype, batch, m, n, k, described)
    _launch(a, b, out, addend, alpha, config, processor)
    return out


class _Addend:
    """beta * c as the kernels take it; without one, any pointer that is never read."""

    def __init__(self, c: Tensor, beta: float, kind: str) -> None:
        self.c = c
        self.beta = beta
        self.kind = kind

    @classmethod
    def of(cls, c: Tensor | None, beta: Any, out: Tensor) -> "_Addend":
        if c is None or beta == 0:
            return cls(out, 1.0, "none")
        c = c.expand(out.shape)
        flat = out.shape[1] == 1 or c.stride(1) == 0
        return cls(c, float(beta), ("bias" if flat else "matrix") + ("" if beta == 1 else " scaled"))


def _launch(
    a: Tensor, b: Tensor, out: Tensor, addend: _Addend, alpha: Any, config: Config, processor: Processor
) -> None:
    batch, m, k = a.shape
    n = b.shape[2]
    chunk = numerics.contraction_gpu_chunk(a.element_size())
    assert chunk % config.block_k == 0, "a block of K would reach into the next chunk"
    chunks = triton.cdiv(k, chunk)
    form = "one" if chunks <= 1 else "parallel" if config.parallel else "sequence"
    target, plain = out, addend
    if form == "parallel":
        target = torch.empty((chunks, *out.shape), dtype=torch.float32, device=out.device)
        plain = _Addend(out, 1.0, "none")
    scale = form != "parallel" and alpha != 1
    settings = {
        "CHUNK": chunk,
        "CHUNKS": form,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "GROUP_M": 8,
        "PRECISION": _PRECISION[a.dtype],
        "SWAP": config.swap,
        "SCALE": scale,
        "ADDEND": plain.kind,
        "num_warps": config.warps,
        "num_stages": config.stages,
        **COMPILATION,
    }
    if config.descriptors and batch == 1 and _describable(a[0], b[0]):
        tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n + config.more)
        pieces = tiles * (chunks if form == "parallel" else 1)
        at_a_time = processor.multiprocessors * config.resident(processor, a.element_size())
        kernels.product_by_descriptors[(min(pieces, at_a_time),)](
            *_descriptors(a[0], b[0], config), target, plain.c, m, n, k, float(alpha), plain.beta,
            *plain.c.stride()[1:],
            BY_COLUMN=_by_column(b[0]), MORE=config.more, **settings,
        )  # fmt: skip
    else:
        tiles = triton.cdiv(m, config.block_m) * triton.cdiv(n, config.block_n)
        kernels.product[(tiles * batch, chunks if form == "parallel" else 1)](
            a, b, plain.c, target, m, n, k, float(alpha), plain.beta,
            *_strides(a), *_strides(b), *_strides(plain.c),
            EVEN_K=k % config.block_k == 0, **settings,
        )  # fmt: skip
    if form == "parallel":
        block = 1024
        kernels.add_chunks[(triton.cdiv(out.numel(), block),)](
            target, addend.c, out, batch, m, n, chunks, float(alpha), addend.beta, *addend.c.stride(),
            BLOCK=block, SCALE=alpha != 1, ADDEND=addend.kind, **COMPILATION,
        )  # fmt: skip


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of a batch of matrices; a matrix alone has no next one, and 0 says nothing about M to the compiler."""
    return (0 if x.shape[0] == 1 else x.stride(0), x.stride(1), x.stride(2))


def _in_double(a: Tensor, b: Tensor, out: Tensor, addend: _Addend, alpha: Any) -> None:
    batch, m, k = a.shape
    n = b.shape[2]
    scales = out
    if alpha != 1 or addend.kind.endswith("scaled"):
        # Filled on the device: a copy from the host could not be captured in a CUDA graph.
        scales = torch.full((2,), float(alpha), dtype=torch.float64, device=out.device)
        scales[1:].fill_(addend.beta)
    kernels.product_in_double[(triton.cdiv(m, 16) * triton.cdiv(n, 32) * batch,)](
        a, b, addend.c, out, scales, m, n, k, *a.stride(), *b.stride(), *addend.c.stride(),
        CHUNK=numerics.CONTRACTION_CHUNK, BLOCK_M=16, BLOCK_N=32,
        SCALE=alpha != 1, ADDEND=addend.kind, **COMPILATION,
    )  # fmt: skip


def _describable(a: Tensor, b: Tensor) -> bool:
    """Whether the tensor memory accelerator can read both: it wants rows of whole 16 bytes."""
    return a.shape[1] > 0 and _readable(a) and _readable(b.t() if _by_column(b) else b)


def _descriptors(a: Tensor, b: Tensor, config: Config) -> list[TensorDescriptor]:
    """a, b and b in blocks of `config.more` columns."""
    by_column = _by_column(b)
    second = b.t() if by_column else b
    k = config.block_k

    def columns(width: int) -> TensorDescriptor:
        shape = [width, k] if by_column else [k, width]
        return TensorDescriptor(second, second.shape, second.stride(), shape)

    whole = columns(config.block_n)
    first = TensorDescriptor(a, a.shape, a.stride(), [config.block_m, k])
    return [first, whole, columns(config.more) if config.more else whole]


def _by_column(b: Tensor) -> bool:
    return b.stride(0) == 1


def _readable(x: Tensor) -> bool:
    row, column = x.stride()
    size = x.element_size()
    return column == 1 and row >= x.shape[1] and row * size % 16 == 0 and x.data_ptr() % 16 == 0
