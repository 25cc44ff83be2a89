"""Comparison on bits, for tests: NaN equals NaN of the same payload, -0 differs from +0."""

import torch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_integers(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(_INTEGERS[x.element_size()])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(as_integers(a), as_integers(b))


def assert_same_bits(a: torch.Tensor, b: torch.Tensor, what: str = "") -> None:
    assert a.shape == b.shape, f"{what}: shape {tuple(a.shape)} against {tuple(b.shape)}"
    assert a.dtype == b.dtype, f"{what}: {a.dtype} against {b.dtype}"
    differ = as_integers(a) != as_integers(b)
    if differ.any():
        at = tuple(differ.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(differ.sum())} of {a.numel()} differ, first at {at}: {a[at]} {b[at]}"
        )


def order_sensitive(
    *shape: int, dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None
):
    """Data on which every change of summation order shows: cancelling pairs around small values."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    big = torch.rand(shape, generator=generator) < 0.3
    sign = torch.where(torch.rand(shape, generator=generator) < 0.5, 1.0, -1.0).double()
    return torch.where(big, 1024 * sign, x * 2.0**-8).to(dtype)
