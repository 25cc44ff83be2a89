"""What the tests of attention share: operands, masks, layouts, and the definition in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

from tests.bits import assert_same_bits, order_sensitive

LOW = [torch.float32, torch.bfloat16, torch.float16]
DTYPES = [*LOW, torch.float64]
NAN, INF = math.nan, math.inf
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def operands(batch, heads, kv_heads, queries, keys, size, value_size, dtype, generator=None):
    """q and k whose scores are of order one; v on which a change of order shows."""
    q = torch.randn(batch, heads, queries, size, generator=generator, dtype=torch.float64)
    k = torch.randn(batch, kv_heads, keys, size, generator=generator, dtype=torch.float64)
    v = order_sensitive(batch, kv_heads, keys, value_size, dtype=torch.float64, generator=generator)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def additive(attend: torch.Tensor, lowest: float, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as a number to add."""
    return torch.zeros(attend.shape, dtype=dtype).masked_fill(~attend, lowest)


def masks(kind: str, batch: int, heads: int, queries: int, keys: int, dtype: torch.dtype, generator=None):
    """A mask by name, and whether attention is causal."""
    attend = torch.rand(batch, 1, 1, keys, generator=generator) < 0.7
    if kind == "additive per head":
        return torch.randn(1, heads, queries, keys, generator=generator).to(dtype), False
    if kind == "lowest":
        attend[..., 0] = True
        return additive(attend, torch.finfo(dtype).min, dtype), False
    return {
        "none": (None, False),
        "causal": (None, True),
        "boolean": (attend, False),
        "boolean and causal": (attend, True),
        "boolean of each row": (torch.rand(queries, keys, generator=generator) < 0.5, False),
        "-inf": (additive(attend, -INF, dtype), False),
        "additive in fp32": (3 * torch.randn(batch, 1, queries, 1, generator=generator), False),
    }[kind]


MASKS = [
    "none",
    "causal",
    "boolean",
    "boolean and causal",
    "boolean of each row",
    "-inf",
    "lowest",
    "additive per head",
    "additive in fp32",
]

LAYOUTS = {
    "contiguous": lambda x: x,
    "heads inside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "columns": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "a slice": lambda x: F.pad(x, (3, 2, 1, 1))[:, :, 1 : x.shape[2] + 1, 3 : x.shape[3] + 3],
    "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "reversed batch": lambda x: x.flip(0).contiguous().flip(0),
}


def check(found, expected, what=""):
    for name, a, b in zip(("output", "logsumexp"), found, expected, strict=True):
        assert_same_bits(a, b, f"{name} {what}")


def float64(q, k, v, mask, causal, scale, softcap=0.0, sinks=None):
    """Output by the definition."""
    group = q.shape[1] // max(k.shape[1], 1)
    scores = q.double() @ k.double().repeat_interleave(group, 1).transpose(-1, -2) * scale
    if softcap:
        scores = (scores / softcap).tanh() * softcap
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -INF)
    if mask is not None:
        scores = scores.masked_fill(~mask, -INF) if mask.dtype == torch.bool else scores + mask.double()
    if sinks is not None:
        extra = sinks.double().view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
        return weights @ v.double().repeat_interleave(group, 1)
    return scores.softmax(-1).nan_to_num(0.0) @ v.double().repeat_interleave(group, 1)


SHAPES = {
    "batch": st.integers(1, 2),
    "kv_heads": st.integers(1, 2),
    "group": st.sampled_from((1, 1, 2, 3)),
    "queries": st.sampled_from((1, 2, 3, 5, 6, 7, 13, 20)),
    "keys": st.sampled_from((1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 70, 129)),
    "size": st.sampled_from((1, 2, 3, 4, 7, 8, 16, 17, 33)),
    "value_size": st.sampled_from((1, 4, 15, 16, 17, 33, 65)),
}
SOFTCAPS = st.sampled_from((0.0, 0.0, 0.7, 50.0))
