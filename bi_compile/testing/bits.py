"""Comparison of floating-point results as bits, and the distance between two of them in ulps."""

import torch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_integers(x: torch.Tensor) -> torch.Tensor:
    """The bits of x as integers of the same width: NaN equals itself, -0 differs from +0."""
    if x.is_complex():
        x = torch.view_as_real(x)
    return x.contiguous().view(_INTEGERS[x.element_size()])


def differing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Boolean tensor of a's shape: where the bits of a and b, of one shape and dtype, differ."""
    differ = as_integers(a) != as_integers(b)
    return differ.any(-1) if a.is_complex() else differ


def ulps(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Representable values between a and b, element by element, as float64; NaN where either is NaN.

    Counts fp16, bf16, fp32 and fp64. For other dtypes NaN: they have no such distance.
    """
    if a.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return torch.full(a.shape, torch.nan, dtype=torch.float64)
    left, right = _ordered(a), _ordered(b)
    distance = (left.double() - right.double()).abs()
    # The difference of two int64 overflows only where a float64 is precise enough anyway.
    distance = torch.where(distance < 2**62, (left - right).abs().double(), distance)
    return distance.masked_fill(a.isnan() | b.isnan(), torch.nan)


def _ordered(x: torch.Tensor) -> torch.Tensor:
    """Integers in the order of the numbers, neighbours one apart, both zeros at 0."""
    bits = as_integers(x).long()
    width = 8 * x.element_size()
    negative = bits < 0
    magnitude = bits & (2 ** (width - 1) - 1)
    return torch.where(negative, -magnitude, magnitude)
