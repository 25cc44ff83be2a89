"""The tree of attention on CUDA devices in plain torch ops, with chains of fused multiply-adds for products.

What differs from `oracle`: blocks and splits are counted from key 0; the sum of a block's weights folds in
halves (lane j of 64 takes in j + 32, then j + 16 and so on); weights are rounded to the dtype of the values
before they meet them; the scores of bf16 and fp16 count binary digits (times log2 e), so that weights are
powers of two. fp32 products are those chains; those of bf16 and fp16 are tensor cores' (docs/gpu-order.md),
for which a chain stands in here and in the interpreter.
"""

import math
from collections.abc import Callable

import torch

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
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bi_compile::attention` for finite values; see the contract. exp2: as the kernel computes it."""
    keys, group = k.shape[2], q.shape[1] // k.shape[1]
    visible, addend = oracle._masks(q, keys, mask, is_causal)
    # Scores of bf16 and fp16 count binary digits.
    binary = q.dtype != torch.float32
    digits = torch.tensor(oracle._LOG2_E if binary else 1.0)
    scale = scale * math.log2(math.e) if binary and not softcap else scale
    scores = oracle._scores(q.float(), k.float().repeat_interleave(group, 1), scale)
    if softcap:
        cap = torch.tensor(softcap)
        scores = oracle.tanh(scores / cap) * cap * digits
    if addend is not None and mask is not None:
        lowest = addend <= torch.finfo(mask.dtype).min
        scores = torch.where(lowest, addend, scores + addend * digits)
    scores = torch.where(visible, scores, -math.inf)
    values = v.repeat_interleave(group, 1)

    power = exp2 if binary else exp
    total: State = oracle._empty(q.shape[:3], v.shape[3])
    for begin in range(0, keys, SPLIT):
        part: State = oracle._empty(q.shape[:3], v.shape[3])
        for first in range(begin, min(keys, begin + SPLIT), BLOCK):
            at = slice(first, min(first + BLOCK, keys))
            part = _take_in(part, scores[..., at], values[:, :, at], power)
        total = _merge(total, part, power)
    maximum, weight_sum, out = total
    inverse = torch.where(weight_sum == 0, 0.0, 1 / weight_sum)
    out = out * inverse.unsqueeze(-1) + 0.0
    natural = maximum.double() * (math.log(2) if binary else 1)
    lse = torch.where(weight_sum == 0, -math.inf, (natural + weight_sum.double().log()).float())
    return out.to(q.dtype), lse


def _take_in(state: State, scores: torch.Tensor, v: torch.Tensor, power: Function) -> State:
    maximum, weight_sum, out = state
    now = torch.maximum(maximum, scores.amax(-1))
    base = oracle._finite(now)
    alpha, p = power(maximum - base), power(scores - base.unsqueeze(-1))
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
