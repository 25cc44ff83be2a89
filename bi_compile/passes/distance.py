"""cdist and pdist -> norms of differences; their gradients -> sums over the other rows."""

from typing import Any

import torch

from bi_compile.passes.rewrite import rewrite
from bi_compile.templates import distance as _distance  # noqa: F401  (defines the ops)
from bi_compile.templates import reduction as _reduction  # noqa: F401

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor


def _batched(x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    return x1.expand(*batch, *x1.shape[-2:]), x2.expand(*batch, *x2.shape[-2:])


@rewrite(aten._cdist_forward.default)
def _cdist(x1: Tensor, x2: Tensor, p: float, compute_mode: int | None) -> Any:
    return bi.cdist(*_batched(x1, x2), p)


def _slopes(difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """The derivative of a distance by each element of the difference; 0 where it has none."""
    if p == 0:
        return torch.zeros_like(difference)
    if p == 1:
        return difference.sign()
    if p == float("inf"):
        return difference.sign() * (difference.abs() == distance)
    ratio = difference / distance
    slopes = ratio if p == 2 else difference.sign() * ratio.abs().pow(p - 1)
    return torch.where((distance == 0) | (difference == 0), 0, slopes)


@rewrite(aten._euclidean_dist.default)
def _euclidean_dist(x1: Tensor, x2: Tensor) -> Any:
    # What `cdist` becomes with more than 25 rows, where it is not caught whole.
    return bi.cdist(*_batched(x1, x2), 2.0)


@rewrite(aten._cdist_backward.default)
def _cdist_backward(grad: Tensor, x1: Tensor, x2: Tensor, p: float, cdist: Tensor) -> Any:
    x1, x2 = _batched(x1, x2)
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return bi.sum(grad.unsqueeze(-1) * _slopes(difference, cdist.unsqueeze(-1), p), [-2], False)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of each pair, in the order of pdist."""
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1, device=x.device)
    return first, second


@rewrite(aten._pdist_forward.default)
def _pdist(x: Tensor, p: float = 2.0) -> Any:
    return bi.cdist(x, x, p)[_pairs(x)]


@rewrite(aten._pdist_backward.default)
def _pdist_backward(grad: Tensor, x: Tensor, p: float, pdist: Tensor) -> Any:
    first, second = _pairs(x)
    square = x.new_zeros(x.shape[0], x.shape[0])
    grads, distances = (
        square.index_put((first, second), values).index_put((second, first), values)
        for values in (grad, pdist)
    )
    return aten._cdist_backward.default(grads, x, x, p, distances)


REWRITES = (*_cdist, *_euclidean_dist, *_cdist_backward, *_pdist, *_pdist_backward)
