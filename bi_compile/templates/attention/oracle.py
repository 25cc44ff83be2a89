"""The tree of attention in plain torch ops: slow, readable, the kernels' bits for fp32, bf16 and fp16."""

import math

import torch

from bi_compile import numerics
from bi_compile.templates.contraction import bf16_order
from bi_compile.templates.contraction.oracle import tiles

BLOCK = numerics.ATTENTION_KV_BLOCK
SPLIT = numerics.ATTENTION_KV_SPLIT
LANES = 16

_LOG2_E = float.fromhex("0x1.715476p+0")
_SHIFT = 1.5 * 2**23 + 127
_LN2_HIGH = float.fromhex("0x1.62e43p-1")
_LN2_LOW = float.fromhex("-0x1.05c61p-29")
_LOWEST = -87.0
_POLYNOMIAL = tuple(
    float.fromhex(digits)
    for digits in (
        "0x1.6a4ce4p-10",
        "0x1.123988p-7",
        "0x1.5558b0p-5",
        "0x1.555492p-3",
        "0x1.fffffcp-2",
        "0x1p0",
        "0x1p0",
    )
)
"""From r^6 down to 1."""

_TANH_NEAR = 0.5
_TANH = tuple(
    float.fromhex(digits)
    for digits in ("-0x1.b40c10p-8", "0x1.5d01c4p-6", "-0x1.b98c6ep-5", "0x1.110f2ap-3", "-0x1.555552p-2")
)

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Maximum [...], sum [...] and accumulator [..., Dv] of rows."""


def fma(a: torch.Tensor, b: torch.Tensor | float, c: torch.Tensor | float) -> torch.Tensor:
    """a * b + c in fp32, rounded once. b and c are fp32 tensors or numbers that fp32 holds."""
    b = torch.as_tensor(b, dtype=torch.float32)
    c = torch.as_tensor(c, dtype=torch.float32)
    product = a.double() * b.double()  # exact: 48 bits
    total = product + c.double()
    # What the addition lost (Knuth's two-sum). If anything, the total is rounded to odd: its last bit stands
    # for all that follows, so that rounding to fp32 sees on which side of a tie it lies.
    part = total - product
    lost = (product - (total - part)) + (c.double() - part)
    bits = total.view(torch.int64)
    inexact = (lost != 0) & total.isfinite() & (bits & 1 == 0)
    away = (lost > 0) == (total > 0)
    odd = torch.where(away, bits + 1, bits - 1).view(torch.float64)
    return torch.where(inexact, odd, total).float()


def exp(x: torch.Tensor) -> torch.Tensor:
    """exp of x <= 0 (or NaN), the operations of `exp.h` one by one."""
    shifted = fma(x, _LOG2_E, _SHIFT)
    n = shifted - _SHIFT
    r = fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, x))
    value = torch.full_like(x, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        value = fma(value, r, coefficient)
    # The product with a power of two is exact.
    scaled = torch.ldexp(value.double(), n.double()).float()
    return torch.where(x < _LOWEST, 0.0, scaled)


def tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh in fp32, the operations of `exp.h` one by one."""
    size, z = x.abs(), x * x
    p = torch.full_like(x, _TANH[0])
    for coefficient in _TANH[1:]:
        p = fma(p, z, coefficient)
    t = exp(size * -2)
    far = torch.copysign((1 - t) / (1 + t), x)
    return torch.where(size > _TANH_NEAR, far, fma(x * z, p, x))


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`bi_compile::attention` for fp32, bf16 and fp16; see the contract."""
    keys = k.shape[2]
    group = q.shape[1] // k.shape[1]
    visible, addend = _masks(q, keys, mask, is_causal)
    # Nothing of a masked key may be seen, so its row is read as zero. Keys masked for some rows only stay:
    # their weight of exactly 0 removes them, unless they hold NaN or infinity, which this oracle leaves out.
    dead = ~visible.any(dim=2, keepdim=True).transpose(2, 3)
    wide_q = q.float()
    wide_k = torch.where(dead, 0.0, k.float().repeat_interleave(group, 1))
    wide_v = torch.where(dead, 0.0, v.float().repeat_interleave(group, 1))

    by_tiles = q.dtype == torch.bfloat16 and bf16_order() == "tiles"
    scores = _scores(wide_q, wide_k, by_tiles=by_tiles) * torch.tensor(scale, dtype=torch.float32)
    if softcap:
        cap = torch.tensor(softcap)
        scores = tanh(scores / cap) * cap
    attended = visible
    if addend is not None and mask is not None:
        masked = addend <= torch.finfo(mask.dtype).min
        scores = torch.where(masked, addend, scores + addend)
        attended = visible & ~masked
    scores = torch.where(visible, scores, -math.inf)

    total: State = _empty(q.shape[:3], v.shape[3])
    # argmax finds the first of several, and 0 where there is none.
    begins = attended.int().argmax(-1) if keys else torch.zeros(q.shape[:3], dtype=torch.long)
    for begin in begins.unique().tolist():
        walked = _walk(scores[..., begin:], wide_v[:, :, begin:], by_tiles)
        here = begins == begin
        total = (
            torch.where(here, walked[0], total[0]),
            torch.where(here, walked[1], total[1]),
            torch.where(here.unsqueeze(-1), walked[2], total[2]),
        )

    maximum, weight_sum, out = total
    inverse = torch.where(weight_sum == 0, 0.0, 1 / weight_sum)
    out = out * inverse.unsqueeze(-1) + 0.0
    lse = torch.where(weight_sum == 0, -math.inf, (maximum.double() + weight_sum.double().log()).float())
    return out.to(q.dtype), lse


def _masks(
    q: torch.Tensor, keys: int, mask: torch.Tensor | None, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Which keys a row may see, and what is added to their scores."""
    shape = (*q.shape[:3], keys)
    visible = torch.ones(shape, dtype=torch.bool)
    if is_causal:
        visible = visible & (torch.arange(keys) <= torch.arange(q.shape[2]).unsqueeze(1))
    if mask is None:
        return visible, None
    if mask.dtype == torch.bool:
        return visible & mask, None
    addend = mask.float().expand(shape)
    return visible & (addend != -math.inf), addend


def _empty(rows: torch.Size, size: int) -> State:
    return torch.full(rows, -math.inf), torch.zeros(rows), torch.zeros(*rows, size)


def _scores(q: torch.Tensor, k: torch.Tensor, *, by_tiles: bool) -> torch.Tensor:
    """[B, H, Lq, keys]: one chain over d, or the sums of the bf16 order "tiles"."""
    if by_tiles:
        return _tiles(q, k.transpose(-1, -2))
    chain = torch.zeros(*q.shape[:3], k.shape[2])
    for d in range(q.shape[3]):
        chain = fma(q[..., d].unsqueeze(-1), k[..., d].unsqueeze(-2), chain)
    return chain


def _tiles(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, H, M, K] x [B, H, K, N]"""
    return tiles(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])


def _walk(scores: torch.Tensor, v: torch.Tensor, by_tiles: bool) -> State:
    """All keys, from the first in blocks and splits: scores [..., Lq, keys], v [..., keys, Dv]."""
    keys = scores.shape[-1]
    total = _empty(scores.shape[:-1], v.shape[-1])
    for begin in range(0, keys, SPLIT):
        part = _empty(scores.shape[:-1], v.shape[-1])
        for first in range(begin, min(keys, begin + SPLIT), BLOCK):
            at = slice(first, min(first + BLOCK, begin + SPLIT, keys))
            part = _take_in(part, scores[..., at], v[:, :, at], by_tiles)
        total = _merge(total, part)
    return total


def _take_in(state: State, scores: torch.Tensor, v: torch.Tensor, by_tiles: bool) -> State:
    """One block: scores [..., Lq, keys] of at most BLOCK keys, v [..., keys, Dv]."""
    maximum, weight_sum, out = state
    now = torch.maximum(maximum, scores.amax(-1))
    base = _finite(now)
    alpha = exp(maximum - base)
    p = exp(scores - base.unsqueeze(-1))
    weight_sum = fma(weight_sum, alpha, _lane_sum(p))
    if by_tiles:
        return now, weight_sum, fma(out, alpha.unsqueeze(-1), _tiles(p.bfloat16(), v))
    out = out * alpha.unsqueeze(-1)
    for key in range(scores.shape[-1]):
        out = fma(p[..., key].unsqueeze(-1), v[..., key, :].unsqueeze(-2), out)
    return now, weight_sum, out


def _lane_sum(p: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(p, (0, BLOCK - p.shape[-1]))
    lanes = padded[..., :LANES]
    for first in range(LANES, BLOCK, LANES):
        lanes = lanes + padded[..., first : first + LANES]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes.squeeze(-1)


def _merge(left: State, right: State) -> State:
    now = torch.maximum(left[0], right[0])
    base = _finite(now)
    a, c = exp(left[0] - base), exp(right[0] - base)
    weight_sum = fma(left[1], a, right[1] * c)
    out = fma(left[2], a.unsqueeze(-1), right[2] * c.unsqueeze(-1))
    return now, weight_sum, out


def _finite(maximum: torch.Tensor) -> torch.Tensor:
    """What is subtracted from scores: 0 for a row that has seen no key."""
    return torch.where(maximum == -math.inf, 0.0, maximum)
