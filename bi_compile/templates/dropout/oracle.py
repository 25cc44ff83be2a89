"""The noise of dropout in torch's integer operations, which wrap around modulo 2^64."""

import torch

WEYL = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as an int64
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def mix(z: torch.Tensor) -> torch.Tensor:
    """The finalizer of SplitMix64, element by element."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31)


def dropout_mask(x: torch.Tensor, seed: torch.Tensor, p: float, dim: int, rows: int) -> torch.Tensor:
    if x.numel() == 0:
        return torch.ones_like(x, dtype=torch.bool)
    # [samples, elements of one]
    whole = x[None] if rows == 0 else x.unflatten(dim, (-1, rows)).movedim(dim, 0)
    samples = whole.flatten(1) if whole.dim() > 1 else whole[:, None]
    bits = samples.contiguous().view(_BITS[x.element_size()]).to(torch.int64)
    counter = torch.arange(1, bits.shape[1] + 1, device=x.device) * WEYL
    key = mix(seed + mix(bits + counter).sum(1, keepdim=True))
    kept = _shifted(mix(key + counter), 32) >= round(p * 2**32)
    kept = kept.reshape(whole.shape)
    return (kept[0] if rows == 0 else kept.movedim(0, dim).flatten(dim, dim + 1)).contiguous()


def _shifted(z: torch.Tensor, by: int) -> torch.Tensor:
    """To the right, zeros coming in from the left."""
    return (z >> by) & ((1 << (64 - by)) - 1)
