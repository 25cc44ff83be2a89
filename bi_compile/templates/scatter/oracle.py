"""The chains of the scatters, one element after the other in plain torch operations."""

import itertools
from collections.abc import Callable, Sequence

import torch

from bi_compile.templates.reduction.oracle import rounded
from bi_compile.templates.reduction.shapes import acc_dtype


def _extremum(larger: Callable) -> Callable:
    def step(state: torch.Tensor, element: torch.Tensor) -> torch.Tensor:
        if state.isnan() or element.isnan():
            return torch.full_like(state, torch.nan)
        # The sign decides between the zeros.
        return max(state, element, key=lambda v: larger(v, -v.signbit().int()))

    return step


# reduction -> (identity, step).
_CHAINS = {
    "sum": (0.0, torch.add),
    "mean": (0.0, torch.add),
    "prod": (1.0, torch.mul),
    "amax": (-torch.inf, _extremum(lambda v, sign: (v.item(), sign.item()))),
    "amin": (torch.inf, _extremum(lambda v, sign: (-v.item(), -sign.item()))),
}


def scatter_reduce(
    x: torch.Tensor, dim: int, index: torch.Tensor, src: torch.Tensor, reduce: str, include_self: bool
) -> torch.Tensor:
    identity, step = _CHAINS[reduce]
    wide = acc_dtype(x.dtype)
    dim = dim % max(x.dim(), 1)
    states, counts = {}, {}
    for place in itertools.product(*map(range, index.shape)):
        slot = list(place)
        if slot:
            slot[dim] = int(index[place])
        slot = tuple(slot)
        if slot not in states:
            states[slot] = x[slot].to(wide) if include_self else torch.tensor(identity, dtype=wide)
            counts[slot] = int(include_self)
        states[slot] = step(states[slot], src[place].to(wide))
        counts[slot] += 1
    out = x.to(wide, copy=True)
    for slot, state in states.items():
        out[slot] = state / counts[slot] if reduce == "mean" else state
    return rounded(out, x.dtype).contiguous()


def index_put_add(
    x: torch.Tensor, indices: Sequence[torch.Tensor | None], values: torch.Tensor
) -> torch.Tensor:
    # What the indices pick from a tensor of flat positions says where each value goes. The order is that of
    # the broadcast indices; the other dims only choose among slots.
    places = torch.arange(x.numel()).view(x.shape)[tuple(slice(None) if i is None else i for i in indices)]
    values = values.expand(places.shape).reshape(-1)
    return scatter_reduce(x.reshape(-1), 0, places.reshape(-1), values, "sum", True).view(x.shape)
