"""Gradients of padding by the edge: an edge adds up what its copies send back, in the order of their places.

Along one dim after the other, last first, by `bi_compile::scatter_reduce`, in fp32 (fp64 for fp64), rounded
once. The forward copies; other kinds of padding end in ops that have an order already.
"""

from collections.abc import Sequence
from typing import Any

import torch

from bi_compile.passes.rewrite import is_floating, opmath, rewrite

aten = torch.ops.aten
Tensor = torch.Tensor


@rewrite(
    aten.replication_pad1d_backward.default,
    aten.replication_pad2d_backward.default,
    aten.replication_pad3d_backward.default,
)
def _replication(grad: Tensor, x: Tensor, padding: Sequence[Any]) -> Any:
    if not is_floating(grad):
        return NotImplemented
    total = opmath(grad)
    for i, before in enumerate(padding[::2]):
        dim = x.dim() - 1 - i
        place = torch.arange(total.shape[dim], device=grad.device) - before
        shape = list(total.shape)
        shape[dim] = x.shape[dim]
        total = total.new_zeros(shape).index_add(dim, place.clamp(0, x.shape[dim] - 1), total)
    return total.to(x.dtype)


REWRITES = _replication
