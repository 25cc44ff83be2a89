"""Quantiles in graphs before torch 2.12, where PyTorch's own code asks a symbolic size for its number.

They are the ops that it makes of them, in its order, so the bits are those of later versions, and of calls
outside graphs.
"""

import functools
from typing import Any

import torch

aten = torch.ops.aten
Tensor = torch.Tensor

_ROUNDED = {"lower": torch.floor, "higher": torch.ceil, "nearest": torch.round}
_BETWEEN = {"linear", "midpoint"}


def quantile(
    x: Tensor,
    q: Tensor | float,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
    ignore_nan: bool = False,
) -> Tensor:
    """`torch.quantile` of the same arguments, or with `ignore_nan` `torch.nanquantile`.

    x: float32 or float64. q: a number, or a tensor of no or one dim and x's dtype. The result has x's shape
    without dim (1 in its place for keepdim), behind as many as there are in a q of one dim.
    Raises RuntimeError for other dtypes and dims, for an unknown interpolation, and for a number q outside 0
    to 1; those in a tensor are not known in a graph.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise RuntimeError("quantile() input tensor must be either float or double dtype")
    if interpolation not in _BETWEEN | _ROUNDED.keys():
        raise RuntimeError(
            f"quantile() interpolation must be one of those of torch.quantile, not {interpolation}"
        )
    if not isinstance(q, Tensor):
        if not 0 <= q <= 1:
            raise RuntimeError(f"quantile() q must be in the range [0, 1] but got {q}")
        q = torch.full((), q, dtype=x.dtype, device=x.device)
    if q.dim() > 1 or q.dtype != x.dtype:
        raise RuntimeError("quantile() q must be a scalar or 1D tensor of the input's dtype")

    if dim is None or x.dim() == 0:
        values = _of_rows(x.reshape(-1), q.reshape(-1), interpolation, ignore_nan)
        values = values.reshape(*[1] * x.dim(), -1) if keepdim else values
    else:
        values = _of_rows(x.movedim(dim, -1), q.reshape(-1), interpolation, ignore_nan)
        values = values.unsqueeze(dim % x.dim()) if keepdim else values
    return values.movedim(-1, 0) if q.dim() else values.squeeze(-1)


def _of_rows(x: Tensor, q: Tensor, interpolation: str, ignore_nan: bool) -> Tensor:
    """[..., N] and [Q] -> [..., Q]"""
    ordered = x.sort().values
    if ignore_nan:
        places = q * (ordered.isnan().logical_not().sum(-1, True) - 1)
        places = places.masked_fill(places < 0, 0)
    else:
        last = ordered.shape[-1] - 1
        places, holes = torch.broadcast_tensors(q * last, ordered.isnan().any(-1, True))
        places = places.masked_fill(holes, last)  # NaN sorts last
    if interpolation in _ROUNDED:
        return ordered.gather(-1, _ROUNDED[interpolation](places).long())
    below = places.long()
    weight = torch.full_like(places, 0.5) if interpolation == "midpoint" else places - below
    return ordered.gather(-1, below).lerp(ordered.gather(-1, places.ceil().long()), weight)


def _trace(op: Any, build: Any) -> None:
    op.py_impl(torch._C.DispatchKey.CompositeImplicitAutograd)(build)


if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12):
    # Only while a graph is made: calls of users outside go to PyTorch's own code, as ever.
    for _op in (aten.quantile.default, aten.quantile.scalar):
        _trace(_op, quantile)
    for _op in (aten.nanquantile.default, aten.nanquantile.scalar):
        _trace(_op, functools.partial(quantile, ignore_nan=True))
