"""flex_attention -> canonical attention under the mask that its mask_mod and BlockMask describe.

Without a score_mod the mask alone is handed on. With one, the scores are a canonical product, modified, and
then stand as the additive mask of an attention whose own scores are 0: the softmax and the sum over the
values keep the one tree of attention, so padding and the cut of the queries change no bit either.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bi_compile.templates.attention import attention_with_logsumexp

Tensor = torch.Tensor

_SPARSE_Q, _SPARSE_KV, _MASK_MOD = -3, -2, -1
_KV_NUM, _KV_INDICES, _FULL_KV_NUM, _FULL_KV_INDICES = 2, 3, 4, 5
"""Places in a BlockMask's tuple that all supported versions share."""


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: dict[str, Any],
    score_mod_other_buffers: tuple[Tensor, ...] = (),
    mask_mod_other_buffers: tuple[Tensor, ...] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator behind `torch.nn.attention.flex_attention.flex_attention`, of its signature.

    query [B, Hq, Lq, D], key [B or 1, Hkv, Lk, D], value [B or 1, Hkv, Lk, Dv]. score_mod and mask_mod are
    graphs over one score. Returns the output [B, Hq, Lq, Dv], the logsumexp [B, Hq, Lq] divided by ln 2, and
    the largest scores likewise, empty unless they are asked for. Rows without a key give 0.
    """
    batch, heads, queries = query.shape[:3]
    key, value = (t.expand(batch, *t.shape[1:]) for t in (key, value))
    keys = key.shape[2]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    sizes = batch, heads, queries, keys

    mask = _over_scores(block_mask[_MASK_MOD], sizes, mask_mod_other_buffers, query.device)
    mask = _with_blocks(mask, block_mask, queries, keys)
    identity = _is_identity(score_mod, score_mod_other_buffers, query)
    largest_asked = kernel_options.get("OUTPUT_MAX", False)
    scores = None
    if largest_asked or not identity:
        rows = query.to(wide).unflatten(1, (-1, heads // key.shape[1]))
        scores = (rows @ key.to(wide).unsqueeze(2).mT).flatten(1, 2) * scale
        scores = _over_scores(score_mod, sizes, score_mod_other_buffers, query.device, scores)
        scores = torch.where(mask, scores.to(wide), -math.inf)
    if identity:
        out, lse = attention_with_logsumexp(query, key, value, mask, scale)
    else:
        # Products of zeros are scores of zero, to which the real ones are added.
        no_query, no_key = (t.new_zeros(()).expand(*t.shape[:3], 1) for t in (query, key))
        out, lse = attention_with_logsumexp(no_query, no_key, value, scores, 1.0)
    largest = scores.amax(-1) if largest_asked and scores is not None else lse.new_empty(0)
    return out, lse / math.log(2), largest / math.log(2)


def _over_scores(
    mod: Callable[..., Tensor],
    sizes: tuple[int, ...],
    buffers: tuple[Tensor, ...],
    device: torch.device,
    scores: Tensor | None = None,
) -> Tensor:
    """`mod` of all scores, [1 or B, 1 or H, Lq, Lk]."""
    given = () if scores is None else (scores,)
    indices = [torch.arange(size, device=device) for size in sizes]
    with _IndexedByTensors():
        if _is_pointwise(mod, given, device, buffers):
            places = [i.view([-1 if d == dim else 1 for d in range(4)]) for dim, i in enumerate(indices)]
            result = mod(*given, *places, *buffers)
        else:  # takes sizes for constants of the graph
            for dim in reversed(range(4)):
                along = [0 if dim == place else None for place in range(4)]
                mod = torch.vmap(mod, in_dims=(*(0 for _ in given), *along, *(None for _ in buffers)))
            result = mod(*given, *indices, *buffers)
    return result.expand(torch.broadcast_shapes(result.shape, (1, 1, *sizes[2:])))


class _IndexedByTensors(TorchFunctionMode):
    """x[i] with a tensor i of no dims is a gather, so that it may stand for many i at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(i, Tensor) for i in index) and all(isinstance(i, Tensor | int) for i in index):
                own = [torch.as_tensor(i, device=args[0].device) for i in index]
                return torch.ops.aten.index.Tensor(args[0], own)
        return func(*args, **(kwargs or {}))


def _called(
    mod: Callable[..., Tensor], given: tuple[Tensor, ...], device: torch.device, buffers: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`mod` of one score, at query 0 and key 0, and that score."""
    one = tuple(torch.zeros((), dtype=t.dtype, device=device) for t in given)
    index = torch.zeros((), dtype=torch.int64, device=device)
    return mod(*one, index, index, index, index, *buffers), one


def _is_pointwise(
    mod: Callable[..., Tensor], given: tuple[Tensor, ...], device: torch.device, buffers: tuple[Tensor, ...]
) -> bool:
    """Whether `mod` may be called with all scores at once: of one score it computes numbers alone."""
    with _Numbers() as seen:
        _called(mod, given, device, buffers)
    return seen.alone


class _Numbers(TorchDispatchMode):
    """Notices ops that are neither pointwise nor gathers, and results with dims."""

    _OTHERS = frozenset(
        "index detach alias expand _to_copy scalar_tensor lift_fresh lift_fresh_copy "
        "full full_like ones ones_like new_ones zeros zeros_like new_zeros".split()
    )

    def __init__(self) -> None:
        super().__init__()
        self.alone = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = torch.Tag.pointwise in func.tags or func._schema.name.partition("::")[2] in self._OTHERS
        self.alone &= known and isinstance(result, Tensor) and result.dim() == 0
        return result


def _is_identity(score_mod: Callable[..., Tensor], buffers: tuple[Tensor, ...], like: Tensor) -> bool:
    with _IndexedByTensors():
        result, (score,) = _called(score_mod, (like,), like.device, buffers)
    return result is score


def _with_blocks(mask: Tensor, block_mask: tuple[Any, ...], queries: int, keys: int) -> Tensor:
    """`mask` where a block is listed as partly visible, True where it is listed as full, else False."""
    device = mask.device
    partial = _listed(block_mask[_KV_NUM], block_mask[_KV_INDICES])
    rows = torch.arange(queries, device=device) // block_mask[_SPARSE_Q]
    columns = torch.arange(keys, device=device) // block_mask[_SPARSE_KV]

    def spread(blocks: Tensor) -> Tensor:
        return blocks[:, :, rows][:, :, :, columns]

    mask = mask & spread(partial)
    if block_mask[_FULL_KV_NUM] is None:
        return mask
    return mask | spread(_listed(block_mask[_FULL_KV_NUM], block_mask[_FULL_KV_INDICES]))


def _listed(counts: Tensor, indices: Tensor) -> Tensor:
    """[..., Nq, Nkv]: which kv blocks are among the first `counts` [..., Nq] of `indices` [..., Nq, Nkv]."""
    blocks = torch.arange(indices.shape[-1], device=indices.device)
    counted = blocks < counts.unsqueeze(-1)
    return ((indices.unsqueeze(-1) == blocks) & counted.unsqueeze(-1)).any(-2)


CAPTURED = {torch.ops.higher_order.flex_attention: flex_attention}
