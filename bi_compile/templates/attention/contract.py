"""Scaled dot product attention whose rows do not know their batch.

Op
    bi_compile::attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool is_causal, float scale,
                          float softcap=0.0) -> (Tensor, Tensor)
        q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv], Hq a multiple of Hkv: query head h reads
        kv head h // (Hq // Hkv). One dtype of fp32, bf16, fp16, fp64 (not on CUDA devices), any strides.
        mask: broadcastable to [B, Hq, Lq, Lk]; boolean (True: attend) or added to the scores (q's dtype, or
        fp32 for bf16 and fp16). is_causal: query i attends to keys 0 ... i. Both may be given.
        softcap: the bound of scores before the mask, as in Gemma 2; 0 for none.
        Returns the output [B, Hq, Lq, Dv], stored as [B, Lq, Hq, Dv], and the logsumexp of each row's scores
        [B, Hq, Lq], fp32 (fp64 for fp64).

The tree of one row (KV_BLOCK and KV_SPLIT as in `numerics`; fp64 in fp64, others in fp32, widened exactly)
    score  = (chain of fused multiply-adds over d = 0, 1, ..., from +0) * scale, then with a softcap
             tanh(score / softcap) * softcap, then + mask.
             A key masked by False or by causality has the score -inf, one masked by a number that number.
    begin  = the row's first key that is not masked (key 0 for a row that has none): blocks and splits are
             counted from there.
    block  = KV_BLOCK keys: m' = max(m, scores); alpha = exp(m - m'); p = exp(score - m').
             Lane j (of 16) = p[j] + p[j+16] + p[j+32] + p[j+48], left to right; lane j then takes in lane
             j+8, j+4, j+2, j+1. l = fma(l, alpha, lane 0). o = o * alpha, then the chain of fma(p, v, o) over
             the keys in order.
    split  = KV_SPLIT keys walked block by block from m = -inf, l = 0, o = 0.
    merge  = splits in order: m' = max(m, m2), a = exp(m - m'), c = exp(m2 - m'), l = fma(l, a, l2 * c),
             o = fma(o, a, o2 * c).
    output = o * (1 / l) + 0, rounded once; 0 where l = 0 (no key). logsumexp = m + log(l); -inf where l = 0.
    bf16 in the order "tiles" (`bi_compile.templates.contraction.bf16_order()`: machines with Intel AMX, or by
    BI_COMPILE_BF16_ORDER) has the products of that order, subnormals taken as zero within them:
    score  = (sums over d of 32 elements at a time, as in the contraction's contract) * scale, and so on.
    block  = p is rounded to bf16 (the sum l takes it as it is); o = fma(o, alpha, sums over the keys of p v,
             32 at a time from the block's first).
    In the order "pairs" bf16 has the chains above.
    exp is one fixed polynomial (`exp.h`), within 1 ulp, exactly 1 at 0, exactly 0 below -87 (-708 in fp64).
    tanh is a polynomial up to 0.5 and a quotient of exps beyond, within 3 ulp.

What follows from it
    A row depends on its own query, its own mask row and its own head's keys and values. Keys masked before
    its first and after its last visible one are not there: attention over Lk keys equals attention over more
    keys whose surplus on either side is masked (padding on the left and on the right, a sliding window whose
    cache has dropped what left it), and a decoded query equals its row of a causal prefill.
    A masked key contributes nothing even if its key or value holds NaN or infinity. Masked means: False,
    beyond causality, or an additive mask at or below the lowest finite number of the mask's dtype, which then
    takes the place of the score. A mask of that number equals one of -inf, bit for bit, in rows that have
    another key. In rows that have none, False and -inf give 0 as in PyTorch, and the lowest finite number
    gives the average over all keys, padding included, as in PyTorch (where adding it absorbs the score).

On CUDA devices the tree is that of `gpu_oracle.py`; what follows from it is the same.

Stock kernels choose block sizes and the product's order by the number of queries, keys and threads.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

import bi_compile.templates.contraction
import bi_compile.templates.reduction  # noqa: F401  (the backward calls bmm and sum)
from bi_compile.errors import UnsupportedDtypeError, UnsupportedOpError
from bi_compile.templates.registry import define

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CUDA_DTYPES = DTYPES[:3]
LARGE = 2.0**16
"""From here on a logsumexp in fp32 is no longer accurate enough for weights that sum to 1."""


def refuse_dtype(q: torch.Tensor, name: str = "attention") -> None:
    """Raise UnsupportedDtypeError where the device of q has no kernel for its dtype: when traced already."""
    on_cuda = q.device.type == "cuda"
    supported = CUDA_DTYPES if on_cuda else DTYPES
    if q.dtype not in supported:
        where = f"{name} on CUDA devices" if on_cuda else name
        raise UnsupportedDtypeError(where, str(q.dtype), map(str, supported))


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> None:
    refuse_dtype(q)
    torch._check(
        k.dtype == q.dtype and v.dtype == q.dtype,
        lambda: f"attention: q, k and v have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}",
    )
    torch._check(
        q.dim() == 4 and k.dim() == 4 and v.dim() == 4,
        lambda: f"attention: q, k and v have 4 dims, got {q.dim()}, {k.dim()} and {v.dim()}",
    )
    if mask is not None and mask.dtype not in _mask_dtypes(q.dtype):
        supported = " or ".join(map(str, _mask_dtypes(q.dtype)))
        raise TypeError(f"attention: the mask of {q.dtype} inputs is {supported}, got {mask.dtype}")


def _mask_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    low = dtype in (torch.bfloat16, torch.float16)
    return (torch.bool, dtype, torch.float32) if low else (torch.bool, dtype)


def _fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check(q, k, v, mask)
    batch, heads, queries, _ = q.shape
    out = q.new_empty(batch, queries, heads, v.shape[3]).transpose(1, 2)
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out, q.new_empty(batch, heads, queries, dtype=lse_dtype)


attention = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool is_causal, float scale, float softcap=0.0) "
    "-> (Tensor, Tensor)",
    family="attention",
    fake=_fake,
)


class _Attention(torch.autograd.Function):
    """The raw op forward; backward from the saved logsumexp, composed of canonical ops."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        scale: float,
        softcap: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attention(q, k, v, mask, is_causal, scale, softcap)
        ctx.save_for_backward(q, k, v, mask, out, lse)
        ctx.settings = is_causal, scale, softcap
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        q, k, v, mask, out, lse = ctx.saved_tensors
        grad = torch.zeros_like(out) if grads[0] is None else grads[0]
        found = attention_backward(
            grad,
            q,
            k,
            v,
            mask,
            out,
            lse,
            *ctx.settings,
            mask_grad=ctx.needs_input_grad[3],
            lse_grad=grads[1],
        )
        return (*found, None, None, None)


def attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    is_causal: bool,
    scale: float,
    softcap: float = 0.0,
    *,
    mask_grad: bool = False,
    lse_grad: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of q, k, v and, if asked for, of an additive mask.

    grad [B, Hq, Lq, Dv], lse_grad [B, Hq, Lq]; the others as taken and returned by `attention`. With
    P = exp(scores - logsumexp): dV = P^T dO, dP = dO V^T, dS = P * (dP - sum(dO * O) + dL), dL the gradient
    of the logsumexp; a softcap multiplies dS by 1 - tanh^2; dQ = dS K * scale, dK = dS^T Q * scale. All
    through bi_compile's bmm and sum in the dtype of lse, each rounded once. The queries of all heads of a
    group are rows of one product, so that grouped heads are summed by the contraction's tree.
    Where P is 0, as of hidden keys, dS is 0 whatever V, O and dO are, and no NaN or infinity of K and Q
    counts in a product: a query that sees one has P = NaN.
    """
    bmm = torch.ops.bi_compile.bmm.default
    total = torch.ops.bi_compile.sum.default
    batch, heads, queries, size = q.shape
    kv_heads, keys, value_size = k.shape[1], k.shape[2], v.shape[3]
    groups, rows = batch * kv_heads, (heads // kv_heads) * queries
    wide = lse.dtype

    q_rows = q.to(wide).reshape(groups, rows, size)
    grad_rows = grad.to(wide).reshape(groups, rows, value_size)
    k_rows = k.to(wide).reshape(groups, keys, size)
    v_rows = v.to(wide).reshape(groups, keys, value_size)

    scores = (bmm(q_rows, k_rows.transpose(1, 2)) * scale).reshape(batch, heads, queries, keys)
    capped = torch.tanh(scores / softcap) if softcap else scores
    scores = apply_mask(capped * softcap if softcap else scores, mask, is_causal)
    # A row without any key has the logsumexp -inf and no gradient.
    finite_lse = torch.where(lse == -math.inf, 0.0, lse).unsqueeze(-1)
    weights = torch.exp(scores - finite_lse)
    # A logsumexp of large numbers has rounded the count of the keys away.
    small = (lse.abs() < LARGE) | (lse == -math.inf)
    share = torch.where(small.unsqueeze(-1), 1.0, total(weights, [-1], True))
    weights = (weights / share).reshape(groups, rows, keys)

    grad_v = bmm(weights.transpose(1, 2), grad_rows)
    grad_weights = bmm(grad_rows, v_rows.transpose(1, 2))
    delta = total(grad.to(wide) * out.to(wide), [-1], True)
    if lse_grad is not None:
        delta = delta - lse_grad.unsqueeze(-1)
    hidden = weights == 0
    grad_scores = torch.where(hidden, 0.0, weights * (grad_weights - delta.reshape(groups, rows, 1)))
    grad_mask = None
    if mask_grad and mask is not None:
        grad_mask = _sum_to(grad_scores.reshape(batch, heads, queries, keys), mask.shape).to(mask.dtype)
    if softcap:
        slope = (1 - capped * capped).reshape(groups, rows, keys)
        grad_scores = torch.where(hidden, 0.0, grad_scores * slope)
    grad_q = bmm(grad_scores, _finite(k_rows)) * scale
    grad_k = bmm(grad_scores.transpose(1, 2), _finite(q_rows)) * scale
    return (
        grad_q.reshape(q.shape).to(q.dtype),
        grad_k.reshape(k.shape).to(k.dtype),
        grad_v.reshape(v.shape).to(v.dtype),
        grad_mask,
    )


def _finite(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def apply_mask(scores: torch.Tensor, mask: torch.Tensor | None, is_causal: bool) -> torch.Tensor:
    """The scores [..., Lq, Lk] with the mask added, -inf where it hides; its lowest number replaces them."""
    if is_causal:
        queries, keys = scores.shape[-2:]
        query = torch.arange(queries, device=scores.device).unsqueeze(1)
        scores = torch.where(torch.arange(keys, device=scores.device) <= query, scores, -math.inf)
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return torch.where(mask, scores, -math.inf)
    return torch.where(mask <= torch.finfo(mask.dtype).min, mask, scores + mask)


def _sum_to(x: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """x summed over the dims in which `shape` was broadcast to x's shape."""
    x_shape = [1] * (x.dim() - len(shape)) + list(shape)
    dims = [i for i, size in enumerate(x_shape) if size == 1]
    return torch.ops.bi_compile.sum.default(x, dims, True).reshape(shape) if dims else x.reshape(shape)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` through `bi_compile::attention`, with gradients.

    query [..., Hq, Lq, D], key [..., Hkv, Lk, D], value [..., Hkv, Lk, Dv], two dims or more, leading dims
    broadcast; attn_mask broadcastable to [..., Hq, Lq, Lk]. Returns [..., Hq, Lq, Dv].
    softcap: bound of the scores, 0 for none. sinks [Hq]: a score of each head that takes part in the softmax
    and has no value; the output is multiplied by 1 / (1 + exp(sink - logsumexp)).
    Raises UnsupportedDtypeError, UnsupportedOpError for dropout, and RuntimeError where stock does.
    """
    name = "scaled_dot_product_attention"
    refuse_dtype(query, name)
    if dropout_p > 0:
        raise UnsupportedOpError(
            f"{name} with dropout",
            signature=f"query {_describe(query)}, dropout_p={dropout_p}",
            where=None,
            reason="random numbers are drawn for the whole batch: a sample's own depend on its position. "
            "Call model.eval(), set the dropout of attention to 0, or compile with "
            'options={"dropout": "per_sample"}.',
        )
    check_inputs(query, key, value, attn_mask, is_causal)
    if scale is None:
        scale = default_scale(query)
    if attn_mask is not None and query.dtype == torch.float64 and attn_mask.dtype == torch.float32:
        attn_mask = attn_mask.double()

    heads = [t.shape[:-2] for t in (query, key, value)]
    if enable_gqa and min(t.dim() for t in (query, key, value)) >= 3:
        # The last leading dim counts heads: grouped, not broadcast.
        outer = torch.broadcast_shapes(*(lead[:-1] for lead in heads))
        leads = [(*outer, lead[-1]) for lead in heads]
    else:
        leads = [torch.broadcast_shapes(*heads)] * 3
    q, k, v = (_four_dims(t, lead) for t, lead in zip((query, key, value), leads, strict=True))
    mask = attn_mask
    if mask is not None and mask.dim() >= 4 and len(leads[0]) > 2:
        mask = mask.expand(*leads[0][:-1], *mask.shape[-3:]).flatten(0, -4)

    out, lse = attention_with_logsumexp(q, k, v, mask, scale, is_causal=is_causal, softcap=softcap)
    if sinks is not None:
        share = torch.sigmoid(lse - sinks.to(lse.dtype).unsqueeze(-1))
        out = (out.to(lse.dtype) * share.unsqueeze(-1)).to(out.dtype)
    return out if len(leads[0]) == 2 else out.reshape(*leads[0], *out.shape[-2:])


def attention_with_logsumexp(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    *,
    is_causal: bool = False,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bi_compile::attention` with gradients, shapes as there."""
    inputs = [t for t in (q, k, v, mask) if t is not None]
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    run: Any = _Attention.apply if differentiated else attention
    return run(q, k, v, mask, is_causal, scale, softcap)


def _four_dims(x: torch.Tensor, lead: Sequence[int]) -> torch.Tensor:
    """x broadcast to the leading dims `lead`, all but the last of which become one."""
    x = x.expand(*lead, *x.shape[-2:])
    if len(lead) > 2:
        return x.flatten(0, -4)
    return x[(None,) * (2 - len(lead))]


def default_scale(query: torch.Tensor) -> float:
    """1 / sqrt(D). The head size is a constant of any graph, never an extent of the batch."""
    return 1.0 / math.sqrt(max(int(query.shape[-1]), 1))


def check_inputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
) -> None:
    """Raise UnsupportedDtypeError, and RuntimeError where stock scaled_dot_product_attention does."""
    name = "scaled_dot_product_attention"
    refuse_dtype(query, name)
    shapes = f"query {_describe(query)}, key {_describe(key)}, value {_describe(value)}"
    if min(query.dim(), key.dim(), value.dim()) < 2:
        raise RuntimeError(f"{name}: query, key and value must have two dims or more, got {shapes}")
    if query.dtype != key.dtype or query.dtype != value.dtype:
        raise RuntimeError(f"{name}: query, key and value must have one dtype, got {shapes}")
    if attn_mask is None:
        return
    if is_causal:
        raise RuntimeError(
            f"{name}: attn_mask and is_causal=True exclude one another, got a mask {_describe(attn_mask)}"
        )
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise RuntimeError(
            f"{name}: attn_mask must be boolean, fp32 or of the query's dtype, "
            f"got {_describe(attn_mask)} for {shapes}"
        )


def _describe(x: torch.Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
