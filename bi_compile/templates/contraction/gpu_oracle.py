"""The tree of contractions on CUDA devices, spelled in plain torch ops.

What one tensor core instruction computes is not documented. `fused_sum` is a public model of Hopper's
(MMA-Sim, arXiv 2511.10909), which an H200 followed bit for bit except on subnormal numbers
(docs/gpu-order.md). The order of these sums is the same on every architecture.
"""

from collections.abc import Callable
from typing import Any

import torch

from bi_compile import numerics

Tensor = torch.Tensor
FusedSum = Callable[[Tensor, Tensor, Tensor, int], Tensor]

_FRACTION = 25
"""Bits behind the point that a term keeps, relative to the largest one."""


def product(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    beta: Any = 1,
    alpha: Any = 1,
    fused: FusedSum | None = None,
) -> Tensor:
    """alpha * (a x b) + beta * c for [M, K] x [K, N] in bf16, fp16 or fp32, in the GPU kernels' order."""
    total = sums(a, b, fused)
    if alpha != 1:
        total = total.new_tensor(alpha) * total
    if c is not None and beta != 0:
        addend = c.to(total.dtype)
        total = total + (addend if beta == 1 else total.new_tensor(beta) * addend)
    return total.to(a.dtype)


def sums(a: Tensor, b: Tensor, fused: FusedSum | None = None) -> Tensor:
    """a x b in fp32, not yet rounded to the dtype."""
    fused = fused or fused_sum
    size = numerics.contraction_gpu_chunk(a.element_size())
    chunk = _chunk_fp32 if a.dtype == torch.float32 else _chunk
    smallest = -14 if a.dtype == torch.float16 else -126
    chains = [chunk(a[:, k : k + size], b[k : k + size], fused, smallest) for k in range(0, a.shape[1], size)]
    total = a.new_zeros((a.shape[0], b.shape[1]), dtype=torch.float32)
    if len(chains) == 1:
        return chains[0]
    for chain in chains:
        total = total + chain
    return total


def _chunk(a: Tensor, b: Tensor, fused: FusedSum, smallest: int, at_a_time: int = 16) -> Tensor:
    return _chain(a.float(), b.float(), a.new_zeros((), dtype=torch.float32), fused, smallest, at_a_time)


def _chain(a: Tensor, b: Tensor, total: Tensor, fused: FusedSum, smallest: int, at_a_time: int) -> Tensor:
    total = total.expand(a.shape[0], b.shape[1])
    for k in range(0, a.shape[1], at_a_time):
        total = fused(total, a[:, k : k + at_a_time], b[k : k + at_a_time], smallest)
    return total


def _chunk_fp32(a: Tensor, b: Tensor, fused: FusedSum, smallest: int) -> Tensor:
    total = a.new_zeros((a.shape[0], b.shape[1]))
    size = numerics.CONTRACTION_GPU_FP32_BLOCK
    for k in range(0, a.shape[1], size):
        total = block_fp32(a[:, k : k + size], b[k : k + size], fused) + total
    return total


def block_fp32(a: Tensor, b: Tensor, fused: FusedSum) -> Tensor:
    """What one block of K adds to the sum of an fp32 product: three products of tf32 parts."""
    (a_high, a_low), (b_high, b_low) = _parts(a), _parts(b)
    small = _chain(a_low, b_high, a.new_zeros(()), fused, -126, 8)
    small = _chain(a_high, b_low, small, fused, -126, 8)
    # inf has no lower part: inf - inf. Nor has NaN, which the last product brings in all the same.
    small = torch.where(small.isnan(), 0.0, small)
    return _chain(a_high, b_high, small, fused, -126, 8)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest tf32, ties away from zero, and what is left, cut to tf32."""
    bits = x.contiguous().view(torch.int32)
    high = torch.where(x.isfinite(), (bits + 0x1000) & ~0x1FFF, bits).view(torch.float32)
    return high, ((x - high).view(torch.int32) & ~0x1FFF).view(torch.float32)


def fused_sum(total: Tensor, a: Tensor, b: Tensor, smallest: int) -> Tensor:
    """total [M, N] + a [M, k] x [k, N] b, as one instruction of Hopper's tensor core sums it.

    Every term is cut to 25 bits behind the point of the largest, by the sum of its factors' exponents; the
    exact sum of what is left is cut to fp32. smallest: the least exponent of a normal number of the dtype.
    """
    exponents = _exponent(a, smallest)[:, :, None] + _exponent(b, smallest)[None, :, :]
    largest = torch.maximum(exponents.amax(1), _exponent(total, -126))
    unit = _power_of_two(_FRACTION - largest)
    terms, addend = a.double()[:, :, None] * b.double()[None, :, :], total.double()
    cut = (terms * unit[:, None, :]).trunc_().sum(1) + (addend * unit).trunc_()
    exact = cut / unit
    plain = terms.sum(1) + addend
    return torch.where(plain.isfinite(), _cut_to_float(exact), plain.float())


def _exponent(x: Tensor, smallest: int) -> Tensor:
    """floor(log2(|x|)), at least `smallest`; -126 for 0."""
    exponent = torch.frexp(x)[1] - 1
    return torch.where(x == 0, -126, exponent.clamp(min=smallest))


def _power_of_two(exponent: Tensor) -> Tensor:
    """In fp64, spelled in bits: that of torch takes longer than all else."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def _cut_to_float(x: Tensor) -> Tensor:
    rounded = x.float()
    away = rounded.double().abs() > x.abs()
    return torch.where(away, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)
