"""The contraction tree, spelled in plain torch ops: every function has the kernel's bits."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from bi_compile import numerics
from bi_compile.templates.contraction.contract import bf16_order

Tensor = torch.Tensor

_MIN_NORMAL = 2.0**-126


def mm(a: Tensor, b: Tensor) -> Tensor:
    return bmm(a.unsqueeze(0), b.unsqueeze(0)).squeeze(0)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    return _rounded(_sums(a, b), a.dtype)


def addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return baddbmm(c, a.unsqueeze(0), b.unsqueeze(0), beta=beta, alpha=alpha).squeeze(0)


def baddbmm(c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    total = _sums(a, b)
    if alpha != 1:
        total = total.new_tensor(alpha) * total
    if beta != 0:
        addend = c.to(total.dtype)
        total = total + (addend if beta == 1 else total.new_tensor(beta) * addend)
    return _rounded(total, a.dtype)


def linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    flat = x.reshape(rows, x.shape[-1])
    out = mm(flat, w.t()) if bias is None else addmm(bias, flat, w.t())
    return out.reshape(*x.shape[:-1], w.shape[0])


def _rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(total.isnan(), torch.nan, total).to(dtype)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, N] in fp32, or fp64 for fp64: the whole tree over K."""
    chunk = numerics.CONTRACTION_CHUNK
    leaves = [_chain(a[:, :, k : k + chunk], b[:, k : k + chunk]) for k in range(0, a.shape[2], chunk)]
    while len(leaves) > 1:
        pairs = [left + right for left, right in zip(leaves[::2], leaves[1::2], strict=False)]
        leaves = pairs + leaves[len(pairs) * 2 :]
    return leaves[0] if leaves else _chain(a, b)


def _chain(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.bfloat16:
        return {"tiles": tiles, "pairs": _pairs}[bf16_order()](a, b)
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    step = fma64 if a.dtype == torch.float64 else fma32
    return _steps(step, a.to(wide), b.to(wide), range(a.shape[2]))


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """The bf16 order "pairs": the odd element of a pair before the even one."""
    a, b = _padded(a, b, 2)
    return _steps(fma32_flushed, a, b, [k ^ 1 for k in range(a.shape[2])])


def tiles(a: Tensor, b: Tensor) -> Tensor:
    """[B, M, K] x [B, K, N] in the bf16 order "tiles", in fp32.

    32 elements of K at a time, a chain over the even ones and one over the odd ones.
    """
    a, b = _padded(a, b, 32)
    total = _steps(fma32_flushed, a, b, [])
    for k in range(0, a.shape[2], 32):
        even = _steps(fma32_flushed, a, b, range(k, k + 32, 2))
        odd = _steps(fma32_flushed, a, b, range(k + 1, k + 32, 2))
        total = _add_flushed(total, _add_flushed(even, odd))
    return total


def _padded(a: Tensor, b: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    absent = -a.shape[2] % multiple
    pad = torch.nn.functional.pad
    return pad(a.float(), (0, absent)), pad(b.float(), (0, 0, 0, absent))


def _steps(step: Callable[..., Tensor], a: Tensor, b: Tensor, order: Iterable[int]) -> Tensor:
    """One chain from +0 over the elements of K in `order`."""
    sums = a.new_zeros(a.shape[0], a.shape[1], b.shape[2])
    for k in order:
        sums = step(a[:, :, k].unsqueeze(2), b[:, k].unsqueeze(1), sums)
    return sums


def _add_flushed(x: Tensor, y: Tensor) -> Tensor:
    return fma32_flushed(x, torch.ones_like(x), y)


def fma32(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x * y + z in fp32 with one rounding."""
    return _exact_to_odd(x.double() * y.double(), z.double()).float()


def fma32_flushed(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """fma32 with subnormal operands and results taken as zero, as x86 with FTZ and DAZ takes them."""
    x, y, z = (_flush(t, t.abs() < _MIN_NORMAL) for t in (x, y, z))
    exact = _exact_to_odd(x.double() * y.double(), z.double())
    # Rounded away from the subnormal range, where the steps are as fine as anywhere.
    unlimited = (exact * 2.0**64).float()
    return _flush(exact.float(), unlimited.abs() < _MIN_NORMAL * 2.0**64)


def _flush(x: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, torch.copysign(torch.zeros_like(x), x), x)


def fma64(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """x * y + z in fp64 with one rounding, barring overflow and subnormal numbers on the way.

    Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
    odd" (IEEE Transactions on Computers 57, 2008), with Dekker's exact product.
    """
    product, low = _two_product(x, y)
    high, rest = _two_sum(z, low)
    total, error = _two_sum(product, high)
    result = total + _exact_to_odd(rest, error)
    plain = x * y + z
    return torch.where(plain.isfinite(), result, plain)


def _exact_to_odd(x: Tensor, y: Tensor) -> Tensor:
    """x + y in fp64, rounded to odd: rounding it again to fewer bits rounds the exact sum once."""
    total, error = _two_sum(x, y)
    bits = total.view(torch.int64)
    inexact = (error != 0) & total.isfinite() & (bits & 1 == 0)
    away = (error > 0) == (total > 0)
    return torch.where(inexact, bits + torch.where(away, 1, -1), bits).view(torch.float64)


def _two_sum(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _two_product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    product = x * y
    (x_high, x_low), (y_high, y_low) = _split(x), _split(y)
    error = x_low * y_low - (((product - x_high * y_high) - x_low * y_high) - x_high * y_low)
    return product, error


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    scaled = x * (2.0**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high
