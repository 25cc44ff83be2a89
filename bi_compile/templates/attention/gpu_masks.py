"""A mask read once, for all tiles: where a row's visible keys begin and end, and what it says of them."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from bi_compile.templates.attention.gpu_arithmetic import ADDITIVE, BLOCK, BOOLEAN
from bi_compile.templates.gpu.device import COMPILATION

_CHUNK = 4096


@triton.jit(do_not_specialize=["heads", "queries", "keys", "words"])
def _read(
    mask, begins, wholes, ends, values, heads, queries, keys, words,
    mask_batch, mask_head, mask_row, mask_key, lowest,
    KIND: tl.constexpr, CAUSAL: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    batch, head, query = row // (heads * queries), row // queries % heads, row % queries
    mask += batch * mask_batch + head * mask_head + query * mask_row
    if CAUSAL:
        keys = tl.minimum(keys, query.to(tl.int32) + 1)
    key = tl.arange(0, CHUNK)
    begin, end, count = keys, 0, 0
    for first in range(0, keys, CHUNK):
        at = mask + (first + key).to(tl.int64) * mask_key
        if KIND == ADDITIVE:
            found = tl.load(at, mask=first + key < keys, other=-float("inf")).to(tl.float32) > lowest
        else:
            found = tl.load(at, mask=first + key < keys, other=0) != 0
        begin = tl.minimum(begin, tl.min(tl.where(found, first + key, keys), 0))
        end = tl.maximum(end, tl.max(tl.where(found, first + key + 1, 0), 0))
        count += tl.sum(found.to(tl.int32), 0)
    if begin == keys:
        # Keys masked by the lowest number count where a row has no others.
        begin = 0 if KIND == ADDITIVE else -1
        end = keys if KIND == ADDITIVE else 0
    whole = end
    word, bit = tl.arange(0, CHUNK // BLOCK), tl.arange(0, BLOCK)
    for first in range(tl.maximum(begin, 0), end, CHUNK):
        own = first + word[:, None] * BLOCK + bit[None, :]
        number = (first - begin) // BLOCK + word
        at = mask + own.to(tl.int64) * mask_key
        if KIND == BOOLEAN:
            packed = tl.full((CHUNK // BLOCK,), -1, tl.int64)
            # Mostly there are no gaps, and nothing to pack.
            if count < end - begin:
                found = tl.load(at, mask=own < end, other=0) != 0
                packed = tl.sum(found.to(tl.int64) << bit[None, :].to(tl.int64), 1)
                whole = tl.minimum(whole, tl.min(tl.min(tl.where(found, end, own), 1), 0))
            tl.store(values + row * words + number, packed, mask=number < words)
        else:
            found = tl.load(at, mask=own < end, other=-float("inf"))
            place = values + (row * words + number)[:, None] * BLOCK + bit[None, :]
            tl.store(place, found, mask=number[:, None] < words)
            whole = tl.minimum(whole, tl.min(tl.min(tl.where(found == 0, end, own), 1), 0))
    tl.store(begins + row, begin)
    tl.store(wholes + row, whole)
    tl.store(ends + row, end)


@triton.jit
def rows_of_mask(of, batch, kv_head, nothing, BLOCK_M: tl.constexpr):
    """[BLOCK_M]: where what a mask says of the rows of a tile begins.

    of: the mask, its strides over batch, heads and queries, the tile's first row, and how many query heads
    share keys. nothing: 0, told late where what is worked out here is not to be kept in registers.
    """
    mask, batch_stride, head_stride, query_stride, first_row, group = of
    row = first_row + nothing + tl.arange(0, BLOCK_M)
    batch, first_head = (batch + nothing).to(tl.int64), (kv_head * group + nothing).to(tl.int64)
    head, query = (row % group).to(tl.int64), (row // group).to(tl.int64)
    head_stride += nothing
    mask += batch * (batch_stride + nothing) + first_head * head_stride
    return mask + head * head_stride + query * (query_stride + nothing)


class ReadMask(NamedTuple):
    """What `attend` reads of a mask [B, H, Lq, Lk]. Dims of stride 0 stay so."""

    kind: int
    """BOOLEAN or ADDITIVE."""
    begins: torch.Tensor
    """int32 [B, H, Lq]: a row's first visible key, or -1; 0 in an additive mask that shows no key."""
    wholes: torch.Tensor
    """int32 [B, H, Lq]: the first key from there on that is masked or changed, or the end."""
    ends: torch.Tensor
    """int32 [B, H, Lq]: the end of its last visible key, or 0; Lk in such a mask."""
    values: torch.Tensor
    """The visible keys, counted from the row's first one: loads are aligned whatever it is. Additive: the
    mask's numbers. Boolean: int64 [B, H, Lq, blocks], a bit for each key of a block. Not the mask's bytes:
    Triton permutes the inner dim of a product by the narrowest load behind its operands, and the weights
    depend on this one."""
    lowest: float
    """What an additive mask's number masks a key with, or below."""

    @classmethod
    def of(cls, mask: torch.Tensor, is_causal: bool) -> "ReadMask":
        """is_causal: query i sees no key after i, whatever the mask says."""
        added = mask.is_floating_point()
        lowest = torch.finfo(mask.dtype).min if added else 0.0
        keys, shape = mask.shape[3], mask.shape[:3]
        shared = [stride == 0 for stride in mask.stride()[:3]]
        shared[2] &= not is_causal
        once = mask[tuple(slice(0, 1) if one else slice(None) for one in shared)]
        batch, heads, queries = once.shape[:3]
        words = triton.cdiv(keys, BLOCK.value)
        bounds = torch.empty(3, batch, heads, queries, dtype=torch.int32, device=mask.device)
        width, dtype = (words * BLOCK.value, mask.dtype) if added else (words, torch.int64)
        kind = (ADDITIVE if added else BOOLEAN).value
        values = torch.empty(batch, heads, queries, width, dtype=dtype, device=mask.device)
        _read[(batch * heads * queries,)](
            once, *bounds, values, heads, queries, keys, words, *once.stride(), lowest,
            KIND=kind, CAUSAL=is_causal, CHUNK=_CHUNK, num_warps=8, **COMPILATION,
        )  # fmt: skip
        return cls(kind, *bounds.expand(3, *shape), values.expand(*shape, width), lowest)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.begins, self.wholes, self.ends, self.values

    @property
    def own_begins(self) -> bool:
        """Whether query heads that share their keys may begin at different ones, or queries."""
        queries, heads = self.begins.shape[2], self.begins.shape[1]
        return (queries > 1 and self.begins.stride(2) != 0) or (heads > 1 and self.begins.stride(1) != 0)
