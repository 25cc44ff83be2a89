"""Any mask, shape, cut of the queries and padding: a row has the bits of the oracle of its sequence alone."""

# pyright: reportArgumentType=false

import math
import os
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_compile.templates.attention import attention, oracle
from tests.bits import assert_same_bits
from tests.templates.attention_problems import LAYOUTS, LOW, SHAPES, SOFTCAPS, additive, float64, operands

THOROUGH = os.environ.get("BI_COMPILE_TEST_PROFILE") == "thorough"
SCALE = 0.3
ROWS = 3
"""Of each sequence, those that the oracle computes: it is slow."""


@dataclass(frozen=True)
class Case:
    """What is drawn: sequences of some lengths in rows of `keys` keys, each from its place in `begins` on.

    heads: of keys, and of queries for each. chunks: of queries, the last takes what is left. static: every
    chunk is given all keys, else those that are there by then. flag: causality by argument, in one chunk.
    """

    lengths: list[int]
    begins: list[int]
    keys: int
    chunks: list[int]
    static: bool
    heads: tuple[int, int]
    sizes: tuple[int, int]
    dtype: torch.dtype
    visible: str
    masked_by: str
    bias: str
    flag: bool
    softcap: float
    layout: str
    garbage: float
    threads: int
    seed: int

    @property
    def mask_dtype(self) -> torch.dtype:
        return torch.float32 if self.masked_by == "lowest of fp32" else self.dtype

    @property
    def chunked(self) -> list[slice]:
        ends = torch.tensor([*self.chunks, self.keys]).cumsum(0).clamp(max=self.keys).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False) if begin < end]


@st.composite
def cases(draw) -> Case:
    count = draw(st.integers(1, 3))
    around = st.sampled_from((0, 0, 1, 5, 16, 64, 67))
    lengths, begins = [draw(SHAPES["keys"]) for _ in range(count)], [draw(around) for _ in range(count)]
    visible = draw(st.sampled_from(("causal", "causal", "window", "documents", "scattered", "full")))
    masked_by = draw(st.sampled_from(("boolean", "boolean", "-inf", "lowest", "lowest of fp32")))
    bias = draw(st.sampled_from(("none", "none", "slopes", "table")))
    return Case(
        lengths,
        begins,
        keys=max(map(sum, zip(lengths, begins, strict=True))) + draw(around),
        chunks=draw(st.lists(st.sampled_from((1, 1, 2, 5, 6, 7, 13, 64, 100)), max_size=6)),
        static=draw(st.booleans()) or visible in ("scattered", "full"),
        heads=(draw(SHAPES["kv_heads"]), draw(SHAPES["group"])),
        sizes=(draw(SHAPES["size"]), draw(SHAPES["value_size"])),
        dtype=draw(st.sampled_from(LOW)),
        visible=visible,
        masked_by=masked_by,
        bias=bias,
        flag=visible == "causal" and masked_by == "boolean" and bias == "none" and draw(st.booleans()),
        softcap=draw(SOFTCAPS),
        layout=draw(st.sampled_from(sorted(LAYOUTS))),
        garbage=draw(st.sampled_from((math.nan, math.inf, -math.inf, 3e4, 0.0))),
        threads=draw(st.sampled_from((1, 2))),
        seed=draw(st.integers(0, 2**31)),
    )


@dataclass(frozen=True)
class Sequence:
    """q, k, v [B, heads, length, features]; what a query sees [B, 1, length, length], and what is added."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sees: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, case: Case, length: int, generator: torch.Generator) -> "Sequence":
        kv_heads, group = case.heads
        shape = 1, kv_heads * group, kv_heads, length, length, *case.sizes
        sees = _sees(case.visible, length, generator)
        if case.masked_by.startswith("lowest"):
            # A row that sees nothing would take the average of all keys, padding included.
            sees |= torch.eye(length, dtype=torch.bool)
        bias = _bias(case, kv_heads * group, length, generator)
        return cls(*operands(*shape, case.dtype, generator), sees, bias)


def _sees(visible: str, length: int, generator: torch.Generator) -> torch.Tensor:
    i, j = torch.arange(length).unsqueeze(1), torch.arange(length)
    reach = int(torch.randint(1, 80, (), generator=generator))
    return {
        "causal": j <= i,
        "window": (j <= i) & (i - j < reach),
        "documents": (j <= i) & (i // reach == j // reach),
        "scattered": torch.rand(length, length, generator=generator) < 0.5,
        "full": torch.ones(length, length, dtype=torch.bool),
    }[visible].view(1, 1, length, length)


def _bias(case: Case, heads: int, length: int, generator: torch.Generator) -> torch.Tensor | None:
    if case.bias == "none":
        return None
    distance = torch.arange(length) - torch.arange(length).unsqueeze(1)
    slopes = torch.linspace(0.05, 0.4, heads).view(1, heads, 1, 1) * distance
    table = torch.randn(1, heads, length, length, generator=generator)
    return (slopes if case.bias == "slopes" else table).to(case.mask_dtype)


def _mask(case: Case, sees: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Both as the one mask that the op takes."""
    if bias is None and case.masked_by == "boolean":
        return sees
    lowest = torch.finfo(case.mask_dtype).min if case.masked_by.startswith("lowest") else -math.inf
    hidden = additive(sees, lowest, case.mask_dtype)
    return hidden if bias is None else torch.where(sees, bias, hidden)


def _batch(case: Case, alone: list[Sequence]) -> Sequence:
    """All sequences, each at its place in a row of keys, garbage around it."""
    first = alone[0]
    rows, heads, keys = len(alone), first.q.shape[1], case.keys
    q, k, v = (
        torch.full((rows, x.shape[1], keys, x.shape[3]), case.garbage, dtype=case.dtype)
        for x in (first.q, first.k, first.v)
    )
    sees = torch.zeros(rows, 1, keys, keys, dtype=torch.bool)
    bias = None if first.bias is None else torch.zeros(rows, heads, keys, keys, dtype=case.mask_dtype)
    for row, (x, begin) in enumerate(zip(alone, case.begins, strict=True)):
        at = slice(begin, begin + x.q.shape[2])
        q[row, :, at], k[row, :, at], v[row, :, at] = x.q[0], x.k[0], x.v[0]
        sees[row, :, at, at] = x.sees[0]
        if bias is not None and x.bias is not None:
            bias[row, :, at, at] = x.bias[0]
    return Sequence(q, k, v, sees, bias)


def _in_chunks(case: Case, x: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    lay = LAYOUTS[case.layout]
    if case.flag:
        return attention(lay(x.q), lay(x.k), lay(x.v), x.sees.any(2, keepdim=True), True, SCALE, case.softcap)
    parts = []
    for chunk in case.chunked:
        there = slice(0, case.keys if case.static else chunk.stop)
        mask = _mask(case, x.sees[:, :, chunk, there], None if x.bias is None else x.bias[:, :, chunk, there])
        q, k, v = (lay(t) for t in (x.q[:, :, chunk], x.k[:, :, there], x.v[:, :, there]))
        parts.append(attention(q, k, v, mask, False, SCALE, case.softcap))
    out, lse = zip(*parts, strict=True)
    return torch.cat(out, 2), torch.cat(lse, 2)


@settings(max_examples=4000 if THOROUGH else 15)
@given(cases())
def test_rows_are_those_of_the_oracle_alone(case):
    generator = torch.Generator().manual_seed(case.seed)
    alone = [Sequence.of(case, length, generator) for length in case.lengths]
    torch.set_num_threads(case.threads)
    out, lse = _in_chunks(case, _batch(case, alone))
    for row, (x, begin, length) in enumerate(zip(alone, case.begins, case.lengths, strict=True)):
        found = [t[row : row + 1, :, begin : begin + length] for t in (out, lse)]
        mask = _mask(case, x.sees, x.bias)
        once = attention(x.q, x.k, x.v, mask, False, SCALE, case.softcap)
        some = torch.randperm(length, generator=generator)[:ROWS]
        slow = oracle.attention(x.q[:, :, some], x.k, x.v, mask[:, :, some], False, SCALE, case.softcap)
        for name, a, b, c in zip(("output", "logsumexp"), found, once, slow, strict=True):
            assert_same_bits(a, b, f"{name} of sequence {row}")
            assert_same_bits(a[:, :, some], c, f"{name} of sequence {row}, oracle")
        exact = float64(x.q, x.k, x.v, mask, False, SCALE, case.softcap)
        largest, error = x.v.double().abs().max(), (once[0].double() - exact).abs()
        rounded = torch.finfo(case.dtype).eps * exact.abs()
        if case.dtype == torch.bfloat16:  # the order "tiles" rounds the weights, too: each to half an ulp
            size = float64(x.q, x.k, x.v.abs(), mask, False, SCALE, case.softcap)
            rounded += torch.finfo(case.dtype).eps / 2 * size
        assert (error <= rounded + 64 * torch.finfo(torch.float32).eps * largest).all()
