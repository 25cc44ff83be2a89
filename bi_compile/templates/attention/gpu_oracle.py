"""The tree of attention on CUDA devices in plain torch ops, with chains of fused multiply-adds for products.

What differs from `oracle`: splits (see `split_ends`); the sum of a block's weights folds in halves (lane j of
64 takes in j + 32, then j + 16 and so on); weights are rounded to the dtype of the values before they meet
them; a score is not multiplied by the scale on its own, but within the exponent, by one fused multiply-add,
and a mask's number is divided by the scale to be added to it; exponents of bf16 and fp16 count binary digits
(times log2 e), so that weights are powers of two. A scale beyond 2^-20 ... 2^20, or a softcap, multiplies the
scores on their own. Scores below -2^30 that are there count as -2^30, and sizes beyond 2^31 are out of range.

fp32 products are those chains; those of bf16 and fp16 are tensor cores' (docs/gpu-order.md), for which a
chain stands in here and in the interpreter.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import torch

from bi_compile.numerics import ATTENTION_GPU_FIRST_SPLITS as FIRST_SPLITS
from bi_compile.numerics import ATTENTION_GPU_KV_SPLIT as SPLIT
from bi_compile.templates.attention import oracle
from bi_compile.templates.attention.oracle import BLOCK, State, exp, fma

Function = Callable[[torch.Tensor], torch.Tensor]


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float = 0.0,
    exp2: Function = torch.exp2,
    log: Function = torch.log,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bi_compile::attention` for finite values; see the contract. exp2, log: as the kernel computes them."""
    keys, group = k.shape[2], q.shape[1] // k.shape[1]
    visible, addend = oracle._masks(q, keys, mask, is_causal)
    attended = visible
    binary = q.dtype != torch.float32
    digits = oracle._LOG2_E if binary else 1.0
    natural = softcap != 0 or not 2**-20 <= scale <= 2**20
    scores = oracle._scores(q.float(), k.float().repeat_interleave(group, 1), by_tiles=False)
    if natural:
        scores = scores * torch.tensor(scale, dtype=torch.float32)
    factor, unit = (digits, 1.0) if natural else (scale * digits, 1 / scale)
    if softcap:
        cap = torch.tensor(softcap)
        scores = oracle.tanh(scores / cap) * cap
    if addend is not None and mask is not None:
        lowest = addend <= torch.finfo(mask.dtype).min
        least = torch.tensor(-(2.0**30) / factor)
        scores = torch.where(lowest, addend * torch.tensor(unit), fma(addend, unit, scores))
        scores = torch.where(scores < least, least, scores)
        attended = visible & ~lowest
    scores = torch.where(visible, scores, -math.inf)
    values = v.repeat_interleave(group, 1)

    power = exp2 if binary else exp
    maximum, weight_sum, out = oracle._empty(q.shape[:3], v.shape[3])
    # argmax finds the first of several, and 0 where there is none.
    begins = attended.int().argmax(-1) if keys else torch.zeros(q.shape[:3], dtype=torch.long)
    for begin in begins.unique().tolist():
        walked = _walk(scores[..., begin:], values[:, :, begin:], torch.tensor(factor), power)
        here = begins == begin
        maximum = torch.where(here, walked[0], maximum)
        weight_sum = torch.where(here, walked[1], weight_sum)
        out = torch.where(here.unsqueeze(-1), walked[2], out)
    no_key = (weight_sum == 0) & (maximum == -math.inf)
    inverse = torch.where(no_key, 0.0, 1 / weight_sum)
    out = out * inverse.unsqueeze(-1) + 0.0
    lse = fma(maximum, math.log(2) if binary else 1.0, log(weight_sum))
    lse = torch.where(no_key, -math.inf, lse)
    return out.to(q.dtype), lse


def split_ends(keys: int) -> Iterator[int]:
    """The ends of the splits: FIRST_SPLITS of half the length, then of the whole."""
    short = SPLIT // 2
    ends = itertools.chain(
        range(short, FIRST_SPLITS * short, short), itertools.count(FIRST_SPLITS * short, SPLIT)
    )
    for end in ends:
        yield min(end, keys)
        if end >= keys:
            return


def _walk(scores: torch.Tensor, v: torch.Tensor, factor: torch.Tensor, power: Function) -> State:
    """All keys, from the first in blocks and splits: scores [..., Lq, keys], v [..., keys, Dv]."""
    keys = scores.shape[-1]
    total: State = oracle._empty(scores.shape[:-1], v.shape[-1])
    begin = 0
    for end in split_ends(keys):
        part: State = oracle._empty(scores.shape[:-1], v.shape[-1])
        for first in range(begin, end, BLOCK):
            at = slice(first, min(first + BLOCK, end))
            part = _take_in(part, scores[..., at], v[:, :, at], factor, power)
        total = _merge(total, part, power)
        begin = end
    return total


def _take_in(
    state: State, scores: torch.Tensor, v: torch.Tensor, factor: torch.Tensor, power: Function
) -> State:
    maximum, weight_sum, out = state
    now = torch.maximum(maximum, scores.amax(-1) * factor)
    base = oracle._finite(now)
    alpha = power(maximum - base)
    p = power(fma(scores, factor, -base.unsqueeze(-1)))
    weight_sum = fma(weight_sum, alpha, _folded(p))
    out = out * alpha.unsqueeze(-1)
    rounded = p.to(v.dtype).float()
    for key in range(scores.shape[-1]):
        out = fma(rounded[..., key].unsqueeze(-1), v[..., key, :].float().unsqueeze(-2), out)
    return now, weight_sum, out


def _merge(left: State, right: State, power: Function) -> State:
    now = torch.maximum(left[0], right[0])
    base = oracle._finite(now)
    a, c = power(left[0] - base), power(right[0] - base)
    out = fma(left[2], a.unsqueeze(-1), right[2] * c.unsqueeze(-1))
    return now, fma(left[1], a, right[1] * c), out


def _folded(p: torch.Tensor) -> torch.Tensor:
    lanes = torch.nn.functional.pad(p, (0, BLOCK - p.shape[-1]))
    while lanes.shape[-1] > 1:
        low, high = lanes.chunk(2, -1)
        lanes = low + high
    return lanes.squeeze(-1)
