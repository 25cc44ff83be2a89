"""Attention as compiled for GPUs: every tile multiplies in one order, and spills where it must."""

import json
from importlib.util import find_spec

import pytest

from tests.interpreted.compiled import run_compiled

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

_BUILD = """
import json, torch
from bi_compile.templates.attention import gpu
capability, found = {capability}, []
compiled.compile_launches(capability)
gpu._has_tensor_maps = gpu._starts_early = lambda x: capability >= 90
gpu._has_tensor_memory = lambda x: capability >= 100
gpu._shared_memory = lambda x: compiled.LIMITS[capability]
gpu._multiprocessors = lambda x: multiprocessors
for dtype, size, heads, queries, keys, causal, masked, multiprocessors in {cases}:
    q = torch.empty(1, heads, queries, size, dtype=getattr(torch, dtype))
    k = torch.empty(1, 8, keys, size, dtype=q.dtype)
    mask = torch.ones(1, 1, queries, keys, dtype=torch.bool) if masked else None
    gpu.attention(q, k, k, mask, causal, 0.1)
    for build in compiled.BUILDS:
        # The kernel that does flagged tiles again, the one that casts booleans, is big and seldom runs.
        careful = "arith.uitofp" in build["asm"]["ttgir"]
        order = compiled.check(build, stack=10000)
        found.append([dtype, size, build["name"], order, careful, build["stack"]])
    compiled.BUILDS.clear()
print(json.dumps(found))
"""
# dtype, size of a head, whether it is the kernel that does tiles again -> most bytes of stack. Of the others
# none has any, but for 8 bytes here and there.
STACK = {
    ("bfloat16", 64, True): 24,
    ("bfloat16", 256, True): 480,
    ("bfloat16", 256, False): 536,
    ("float32", 128, True): 80,
    ("float32", 128, False): 328,
}
DECODED = (8, 1, 300, False, False, 1)
GROUPED = (32, 1, 300, False, True, 1)
PREFILL = (8, 512, 512, True, False, 1)
FEW = (32, 1, 1100, False, False, 132)
ALL = [
    *(("bfloat16", size, *case) for size in (64, 128) for case in (DECODED, PREFILL, FEW)),
    ("bfloat16", 64, *GROUPED),
    ("bfloat16", 256, *PREFILL),
    ("float16", 64, *PREFILL),
    ("float32", 64, *DECODED),
    ("float32", 128, *PREFILL),
]
LARGE = [("bfloat16", 64, *FEW), ("bfloat16", 128, *PREFILL), *ALL[-4:]]
# 86 has less shared memory than 80, and the same instructions.
CASES = {80: LARGE, 86: [("bfloat16", 64, *FEW), ALL[-4]], 90: ALL, 100: LARGE}


@pytest.mark.parametrize("capability", CASES)
def test_every_tile_multiplies_in_one_order(capability):
    """A mask of bytes once changed the order in which weights meet values, where tiles are small."""
    program = _BUILD.format(capability=capability, cases=CASES[capability])
    rows = json.loads(run_compiled(program))
    for dtype, size, name, order, careful, stack in rows:
        assert order == (
            "sums of 2 by scalar instructions" if name != "attend" else _order(dtype, size, careful)
        )
        # Heads of 256 are 128 rows wide with tensor maps alone: measured on Hopper, faster than what fits.
        most = STACK.get((dtype, size, careful), 8)
        if size == 256 and not careful and capability != 90:
            most = 8
        assert stack <= most, (dtype, size, name, careful)
    assert {name for _, _, name, *_ in rows} >= {"attend", "merge_splits"}


def _order(dtype: str, size: int, careful: bool) -> str:
    each = 1 if dtype == "float32" else 16
    products = {f"chain{each}[{size}]", f"chain{each}[64]"}
    kinds = {"bfloat16": {"bf16 k16"}, "float16": {"f16 k16"}, "float32": set()}[dtype]
    if careful:
        # What is not finite is counted, in bf16.
        products, kinds = products | {"chain16[64]"}, kinds | {"bf16 k16"}
    kind = ", ".join(sorted(kinds)) or "scalar instructions"
    return f"products {', '.join(sorted(products))}; sums of 2 by {kind}"
