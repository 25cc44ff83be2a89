"""varlen_attn, sequences packed one after another or in pages -> canonical attention of each, padded.

Padding is masked and canonical attention does not see it, so a sequence has the bits it has alone.
"""

import math
from typing import Any

import torch

from bi_compile.dynamo_tracing import is_tracing
from bi_compile.templates.attention import attention_with_logsumexp

Tensor = torch.Tensor


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
    backend: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op behind `torch.nn.attention.varlen.varlen_attn`, of its signature.

    query [T, Hq, D], of sequence n the rows cu_seq_q[n] to cu_seq_q[n + 1]; key and value [T', Hkv, D] by
    cu_seq_k, or pages [P, S, Hkv, D], of which block_table [N, pages] lists those of a sequence in order.
    seqused_k [N]: how many keys of a sequence are there. Windows and causality count from the last query and
    the last key. num_splits, and backend, which torch gives from 2.15 on, change nothing. Returns the output
    [T, Hq, D], the logsumexp [Hq, T] in fp32 and an empty state of random numbers. Raises ValueError for
    pages without seqused_k, for keys without cu_seq_k and for a sequence longer than max_q or max_k; compiled
    graphs, which know no lengths, give NaN for such a sequence.
    """
    queries = _slots(cu_seq_q, max_q)
    query_lengths = cu_seq_q[1:] - cu_seq_q[:-1]
    if block_table is None:
        if cu_seq_k is None:
            raise ValueError("varlen_attn: keys that are not in pages need cu_seq_k")
        keys = _slots(cu_seq_k, max_k)
        key_lengths = cu_seq_k[1:] - cu_seq_k[:-1] if seqused_k is None else seqused_k
    else:
        if seqused_k is None:
            raise ValueError("varlen_attn: block_table needs seqused_k")
        size = key.shape[1]
        position = torch.arange(max_k, device=key.device)
        pages = block_table.shape[1]
        keys = block_table[:, (position // size).clamp(max=pages - 1)] * size + position % size
        key_lengths = seqused_k
        key, value = key.flatten(0, 1), value.flatten(0, 1)

    too_long = (query_lengths > max_q) | (key_lengths > max_k)
    if not is_tracing() and bool(too_long.any()):
        longest = int(query_lengths.max()), int(key_lengths.max())
        raise ValueError(f"varlen_attn: max_q={max_q} and max_k={max_k}, but sequences have up to {longest}")
    q, k, v = (_gathered(t, slots) for t, slots in ((query, queries), (key, keys), (value, keys)))
    left, right = window_size or (-1, -1)
    mask = _visible(query_lengths, key_lengths, max_q, max_k, left, 0 if is_causal else right)
    scale = 1.0 / math.sqrt(query.shape[2]) if scale is None else scale
    out, lse = attention_with_logsumexp(q, k, v, mask, scale)

    token = torch.arange(query.shape[0], device=query.device)
    sequence = torch.searchsorted(cu_seq_q[1:].contiguous(), token.to(cu_seq_q.dtype), right=True)
    sequence = sequence.clamp(max=len(query_lengths) - 1)
    place = (token - cu_seq_q[sequence]).clamp(0, max_q - 1)
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    out = torch.where(too_long[:, None, None, None], math.nan, out)
    return out.transpose(1, 2)[sequence, place], lse.transpose(1, 2)[sequence, place].T.float(), state


def _slots(cumulative: Tensor, longest: int) -> Tensor:
    """[N, longest]: the rows of each sequence, beyond its end those that follow."""
    return cumulative[:-1].unsqueeze(1) + torch.arange(longest, device=cumulative.device)


def _gathered(x: Tensor, slots: Tensor) -> Tensor:
    """[T, H, D] by slots [N, L] to [N, H, L, D]. Beyond a sequence any row will do: it is masked."""
    return x[slots.clamp(0, x.shape[0] - 1)].transpose(1, 2)


def _visible(
    query_lengths: Tensor, key_lengths: Tensor, max_q: int, max_k: int, left: int, right: int
) -> Tensor:
    """[N, 1, max_q, max_k]: the key exists and lies in the window around the query; -1 for no bound."""
    lengths = key_lengths[:, None, None]
    query = torch.arange(max_q, device=lengths.device)[:, None] + lengths - query_lengths[:, None, None]
    key = torch.arange(max_k, device=lengths.device)
    visible = key < lengths
    if left >= 0:
        visible = visible & (key >= query - left)
    if right >= 0:
        visible = visible & (key <= query + right)
    return visible.expand(-1, max_q, -1).unsqueeze(1)


BY_NAME: dict[str, Any] = {"torch_attn::_varlen_attn": varlen_attention}
