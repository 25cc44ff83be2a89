"""embedding_bag -> gathered rows, added into their bags in order; its gradients likewise."""

from typing import Any

import torch

from bi_compile.passes.rewrite import opmath, rewrite
from bi_compile.templates import reduction as _reduction  # noqa: F401  (defines the ops)
from bi_compile.templates import scatter as _scatter  # noqa: F401

aten = torch.ops.aten
bi = torch.ops.bi_compile
Tensor = torch.Tensor

_SUM, _MEAN, _MAX = range(3)


def _reduce_rows(slots: Any, index: Tensor, rows: Tensor, reduce: str = "sum") -> Tensor:
    """rows [n, D] reduced into zeros [slots, D] by index [n]; a slot without rows stays zero."""
    zeros = rows.new_zeros(slots, rows.shape[1])
    return bi.scatter_reduce(zeros, 0, index[:, None].expand(rows.shape), rows, reduce, reduce == "sum")


def _counts(index: Tensor, slots: Any, counted: Tensor) -> Tensor:
    return index.new_zeros(slots).index_add(0, index, counted.to(index.dtype))


@rewrite(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> Any:
    starts = offsets[:-1] if include_last_offset else offsets
    bags, count = starts.shape[0], indices.shape[0]
    places = torch.arange(count, device=indices.device)
    # Of bags that start at one place all but the last are empty.
    bag = torch.searchsorted(starts.long(), places, right=True) - 1
    kept = indices != padding_idx
    sizes = _counts(bag, bags, kept)

    rows = opmath(weight.index_select(0, indices))
    if per_sample_weights is not None:
        rows = rows * opmath(per_sample_weights)[:, None]
    if mode == _MAX:
        masked = torch.where(kept[:, None], rows, -torch.inf)
        # What is left of a bag of nothing but padding is zero, as an empty bag is.
        largest = torch.where((sizes > 0)[:, None], _reduce_rows(bags, bag, masked, "amax"), 0)
        hit = ((masked == largest[bag]) | masked.isnan()) & kept[:, None]
        place = torch.where(hit, places[:, None], count)
        first = place.new_full((bags, rows.shape[1]), count)
        first = first.scatter_reduce(0, bag[:, None].expand(place.shape), place, "amin")
        names = torch.cat([indices, indices.new_zeros(1)])[first]
        return largest.to(weight.dtype), bag.to(offsets.dtype), sizes.to(offsets.dtype), names
    # A zero added to a sum that starts from +0 changes no bit.
    out = _reduce_rows(bags, bag, torch.where(kept[:, None], rows, 0))
    if mode == _MEAN:
        out = out / sizes.clamp(min=1)[:, None]
    return out.to(weight.dtype), bag.to(offsets.dtype), sizes.to(offsets.dtype), torch.zeros_like(sizes)


@rewrite(aten._embedding_bag_dense_backward.default)
def _embedding_bag_dense_backward(
    grad: Tensor,
    indices: Tensor,
    bag: Tensor,
    sizes: Tensor,
    names: Tensor,
    slots: Any,
    scale_grad_by_freq: bool,
    mode: int,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Any:
    wide = opmath(grad)
    if mode == _MAX:
        taken = torch.where((sizes > 0)[:, None], wide, 0)
        zeros = wide.new_zeros(slots, grad.shape[1])
        return bi.scatter_reduce(zeros, 0, names.long(), taken, "sum", True).to(grad.dtype)
    rows = wide.index_select(0, bag)
    if mode == _MEAN:
        rows = rows / sizes.clamp(min=1)[bag][:, None]
    if per_sample_weights is not None:
        rows = rows * opmath(per_sample_weights)[:, None]
    if scale_grad_by_freq:
        index = indices.long()
        rows = rows / _counts(index, slots, torch.ones_like(index))[index][:, None]
    rows = torch.where((indices != padding_idx)[:, None], rows, 0)
    return _reduce_rows(slots, indices.long(), rows).to(grad.dtype)


@rewrite(aten._embedding_bag_backward.default)
def _embedding_bag_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bag: Tensor,
    sizes: Tensor,
    names: Tensor,
    slots: Any,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Any:
    if sparse:
        return NotImplemented
    return aten._embedding_bag_dense_backward.default(
        grad, indices, bag, sizes, names, slots, scale_grad_by_freq, mode, per_sample_weights, padding_idx
    )


@rewrite(aten._embedding_bag_per_sample_weights_backward.default)
def _per_sample_weights_backward(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    bag: Tensor,
    mode: int,
    padding_idx: int = -1,
) -> Any:
    products = opmath(grad).index_select(0, bag) * opmath(weight).index_select(0, indices)
    kept = (indices != padding_idx)[:, None]
    return bi.sum(torch.where(kept, products, 0), [1], False).to(grad.dtype)


REWRITES = (
    *_embedding_bag,
    *_embedding_bag_dense_backward,
    *_embedding_bag_backward,
    *_per_sample_weights_backward,
)
