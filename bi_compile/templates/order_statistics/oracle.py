"""The first elements of a stable sort whose only key is the value."""

import torch


def topk(x: torch.Tensor, k: int, dim: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dim() == 0:
        return x.clone(), torch.tensor(0)
    rows = x.movedim(dim, -1).reshape(-1, x.shape[dim])
    chosen = [
        sorted(range(x.shape[dim]), key=lambda i, r=row: _key(r[i], largest))[:k] for row in rows.tolist()
    ]
    shape = [*x.movedim(dim, -1).shape[:-1], k]
    indices = torch.tensor(chosen, dtype=torch.int64).view(shape).movedim(-1, dim).contiguous()
    # As integers: gather widens bf16 in places, which gives a NaN other bits.
    bits = x.view(_INTEGERS[x.element_size()])
    return bits.gather(dim, indices).contiguous().view(x.dtype), indices


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _key(value: float, largest: bool) -> tuple[bool, float]:
    """Smaller comes first; sorting is stable. NaN, which compares with nothing, is greatest."""
    nan = value != value
    return (nan != largest, 0.0 if nan else -value if largest else value)
