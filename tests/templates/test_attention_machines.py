"""Attention: one machine's bits on every other that has the same bf16 order, whatever computes them."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

from bi_compile import inductor
from bi_compile.templates.attention import attention
from bi_compile.templates.contraction import bf16_order
from tests.bits import as_integers
from tests.templates.attention_problems import DTYPES

GOLDEN = {
    torch.float32: "25a3af70db10f441",
    torch.float16: "2ded6dfa73e0f17d",
    torch.float64: "18d280717f1363ee",
}
GOLDEN_BF16 = {"tiles": "de2d1ef99c0b946b", "pairs": "5d00a26b8f6f252b"}


TINY = """
import torch
from bi_compile.templates.attention import attention, oracle
from tests.bits import assert_same_bits

for dtype in (torch.float32, torch.bfloat16):
    for queries in (1, 20):
        torch.manual_seed(3)
        q, k = (torch.randn(2, 2, n, 70).mul(2.0**-64).to(dtype) for n in (queries, 70))
        v = torch.randn(2, 2, 70, 33).mul(2.0**-124).to(dtype)
        arguments = q, k, v, None, False, 2.0**127
        expected = oracle.attention(*arguments)
        assert ((expected[0] != 0) & (expected[0].abs() < 2.0**-126)).any()
        for flush in (False, True):
            torch.set_flush_denormal(flush)
            found = attention(*arguments)
            torch.set_flush_denormal(False)
            for a, b in zip(found, expected):
                assert_same_bits(a, b, f"{dtype} {queries} {flush}")
"""


@pytest.mark.parametrize(
    "form", [{}, {"BI_COMPILE_NO_BF16_INSTRUCTIONS": "1"}, {"BI_COMPILE_ISA": "portable"}]
)
def test_numbers_below_the_smallest_normal_one_are_the_oracle_s(form):
    """Whatever mode the calling thread has set for them."""
    env = {**os.environ, **form, "BI_COMPILE_BF16_ORDER": "tiles"}
    run = subprocess.run([sys.executable, "-c", TINY], env=env, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 0, run.stderr


def digest(dtype: torch.dtype) -> str:
    """Of outputs on data made of integers alone, which every machine draws alike."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randint(-4096, 4096, shape, generator=generator) / 2048).to(dtype)

    found = hashlib.sha256()
    for shape in ((2, 4, 2, 13, 77, 33, 17), (1, 3, 3, 64, 64, 32, 32), (1, 2, 1, 1, 2500, 8, 80)):
        batch, heads, kv_heads, queries, keys, size, value_size = shape
        q, k = draw(batch, heads, queries, size), draw(batch, kv_heads, keys, size)
        v = draw(batch, kv_heads, keys, value_size)
        for mask, causal in (
            (None, False),
            (None, True),
            (draw(queries, keys), False),
            (draw(keys) > 0, False),
        ):
            capped = attention(q, k, v, mask, causal, 0.25, 0.5)
            for result in (*attention(q, k, v, mask, causal, 0.25), *capped):
                found.update(as_integers(result).numpy().tobytes())
    return found.hexdigest()[:16]


def golden(order: str) -> list[str]:
    return [{**GOLDEN, torch.bfloat16: GOLDEN_BF16[order]}[dtype] for dtype in DTYPES]


def test_golden_bits():
    assert list(map(digest, DTYPES)) == golden(bf16_order())


def test_instruction_sets_give_the_same_bits():
    program = (
        "from tests.templates.test_attention_machines import DTYPES, digest; print(*map(digest, DTYPES))"
    )
    supported = {"avx512": ["avx512", "avx2", "portable"], "avx2": ["avx2", "portable"]}
    forms = [{"BI_COMPILE_ISA": name} for name in supported.get(inductor.best_isa(), ["portable"])]
    forms.append({"BI_COMPILE_NO_BF16_INSTRUCTIONS": "1"})
    for order, form in [*(("tiles", form) for form in forms), ("pairs", forms[0]), ("pairs", forms[1])]:
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **form, "BI_COMPILE_BF16_ORDER": order},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.split() == golden(order), (order, form)
