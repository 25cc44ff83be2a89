"""Attention as compiled for GPUs: every tile multiplies in one order, and spills nothing."""

import json
import re
from importlib.util import find_spec

import pytest

from tests.interpreted.attention_matrix import KERNELS
from tests.interpreted.compiled import run_compiled

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

_BUILD = """
import json
from types import SimpleNamespace
from bi_compile.templates.gpu.ahead import spills_in_innermost_loops
from tests.interpreted import attention_matrix
capability, found = {capability}, []
attention_matrix.pretend(capability)
for dtype, size, *case in {cases}:
    for build in attention_matrix.builds(dtype, size, attention_matrix.Case(*case), {kernels}):
        given = build["given"]
        order = compiled.check(build, stack=10000)
        stack = build["stack"] + build["local"]
        in_loops = spills_in_innermost_loops(SimpleNamespace(**build)) if stack else 0
        pieces = [given.get(x) for x in ("DIMS", "REST", "VALUE_KEYS")]
        found.append([dtype, size, build["name"], pieces, order, stack, in_loops])
print(json.dumps(found))
"""
# heads, queries, keys, causal, mask, softcap, multiprocessors, columns of values
DECODED = (8, 1, 300, False, None, 0.0, 1)
GROUPED = (32, 1, 300, False, "boolean", 0.0, 1)
FEW_MASKED = (32, 1, 1100, False, "boolean", 0.0, 132)
BIASED = (32, 1, 300, False, "added", 0.0, 1)
PREFILL = (8, 512, 512, True, None, 0.0, 1)
FEW = (32, 1, 1100, False, None, 0.0, 132)
MANY = (32, 1, 3100, False, None, 0.0, 12)
# Rows that begin at keys of their own are done by a kernel of theirs.
WINDOW = (32, 512, 512, False, "boolean", 0.0, 1)
BIAS = (8, 64, 1100, True, "added", 0.0, 1000)
CAPPED = (8, 512, 512, True, None, 2.0, 1)
CAPPED_BIAS = (8, 512, 600, True, "added", 2.0, 1)
LATENT = (32, 512, 600, True, None, 0.0, 1, 128)
LATENT_BIAS = (32, 512, 600, True, "added", 0.0, 1, 128)
ALL = [
    *(("bfloat16", size, *case) for size in (64, 128) for case in (DECODED, PREFILL, FEW)),
    ("bfloat16", 128, *MANY),
    ("bfloat16", 64, *GROUPED),
    ("bfloat16", 96, *WINDOW),
    ("bfloat16", 128, *CAPPED),
    ("bfloat16", 100, *DECODED),
    ("bfloat16", 256, *DECODED),
    ("bfloat16", 256, *PREFILL),
    ("float16", 64, *PREFILL),
    ("float16", 192, *PREFILL),
    ("bfloat16", 192, *LATENT),
    ("bfloat16", 80, *WINDOW),
    ("float32", 64, *DECODED),
    ("float32", 128, *FEW),
    ("float32", 256, *FEW),
    ("float32", 96, *WINDOW),
    ("float32", 128, *PREFILL),
]
LARGE = [
    ("bfloat16", 64, *FEW),
    ("bfloat16", 128, *PREFILL),
    ("bfloat16", 128, *WINDOW),
    ("bfloat16", 256, *DECODED),
    ("bfloat16", 256, *PREFILL),
    ("float16", 64, *PREFILL),
    ("float32", 64, *DECODED),
    ("float32", 128, *PREFILL),
    ("float32", 256, *BIAS),
    ("bfloat16", 100, *GROUPED),
]
# 86 has less shared memory than 80, and the same instructions.
SMALL = [
    ("bfloat16", 64, *FEW),
    ("bfloat16", 256, *FEW),
    ("bfloat16", 256, *PREFILL),
    ("float32", 256, *PREFILL),
]
CASES = {80: LARGE, 86: SMALL, 90: ALL, 100: LARGE}


def _built(capability: int, cases: list, kernels: tuple[str, ...] = KERNELS) -> list[list]:
    return json.loads(run_compiled(_BUILD.format(capability=capability, cases=cases, kernels=kernels)))


@pytest.mark.parametrize("capability", CASES)
def test_every_tile_multiplies_in_one_order(capability):
    """A mask of bytes once changed the order in which weights meet values, where tiles are small."""
    rows = _built(capability, CASES[capability])
    for dtype, size, kind, pieces, order, stack, in_loops in rows:
        if kind in ("walk", "apart", "careful"):
            assert order == _order(dtype, pieces, kind == "careful"), (dtype, size, kind, pieces)
        else:
            assert order == "sums of 2 by scalar instructions"
        assert stack == 0, (dtype, size, kind, stack, in_loops)
    assert {kind for _, _, kind, *_ in rows} >= {"walk", "careful", "merge_splits"}


MASKED_AND_CAPPED = [
    ("bfloat16", 256, *WINDOW[:-2], 2.0, 1),
    ("bfloat16", 256, *CAPPED_BIAS),
    ("bfloat16", 192, *LATENT_BIAS),
    ("bfloat16", 256, *GROUPED),
]
MORE_MASKED_AND_CAPPED = [
    ("bfloat16", 192, *BIAS),
    ("bfloat16", 192, *CAPPED_BIAS),
    ("bfloat16", 128, *WINDOW[:-2], 2.0, 1),
    ("bfloat16", 256, *BIASED),
]


@pytest.mark.parametrize(
    "cases", [MASKED_AND_CAPPED, pytest.param(MORE_MASKED_AND_CAPPED, marks=pytest.mark.thorough)]
)
def test_masks_and_softcaps_spill_nothing(cases):
    """On Hopper, in the loops over keys: large heads spilled up to 168 bytes, masked decoding of them 104."""
    rows = _built(90, cases, ("walk", "apart"))
    assert {kind for _, _, kind, *_ in rows} == {"walk", "apart"}
    for dtype, size, kind, pieces, order, stack, _ in rows:
        assert stack == 0, (size, kind, stack)
        assert order == _order(dtype, pieces, careful=False)


@pytest.mark.parametrize(
    ("capability", "cases"),
    [
        (80, [("bfloat16", 128, *GROUPED), ("float32", 128, *CAPPED_BIAS)]),
        (86, [("bfloat16", 128, *WINDOW), ("bfloat16", 96, *FEW_MASKED), ("float32", 80, *BIAS)]),
        (90, [("bfloat16", 80, *CAPPED_BIAS), ("bfloat16", 256, *CAPPED_BIAS), ("float32", 96, *BIAS)]),
        (100, [("bfloat16", 100, *PREFILL), ("bfloat16", 512, *CAPPED_BIAS), ("float32", 128, *WINDOW)]),
    ],
)
def test_tiles_done_again_spill_nothing(capability, cases):
    """The kernel of what is not finite has to count as well: it spilled 8 bytes here and there."""
    rows = _built(capability, cases, ("careful",))
    assert len(rows) == len(cases)
    for dtype, size, kind, pieces, order, stack, _ in rows:
        assert stack == 0, (size, kind, stack)
        assert order == _order(dtype, pieces, careful=True)


@pytest.mark.parametrize(("size", "expected"), [(256, 16 + 2 * 4), (192, 8 + 4 + 2 * 4), (80, 4 + 1 + 2 * 4)])
def test_products_are_waited_for_together(size, expected):
    """The assembler waits for each alone where it finds their sums used between.

    Heads between powers of two have one for every 16 columns of a key, and two for 16 values. The last values
    of large heads are multiplied behind the loop.
    """
    program = _BUILD.format(capability=90, cases=[], kernels=())
    program += f"""
from bi_compile.templates.gpu.ahead import _cuobjdump
case = attention_matrix.Case(8, 512, 512, causal=True)
build, = attention_matrix.builds("bfloat16", {size}, case, ["walk"])
code = _cuobjdump(SimpleNamespace(**build), "-sass")
print(json.dumps([code.count("HGMMA"), code.count("WARPGROUP.DEPBAR")]))
"""
    products, waits = json.loads(run_compiled(program).splitlines()[-1])
    assert products == expected
    assert waits <= 4


@pytest.mark.parametrize(("heads", "causal"), [(8, True), (32, False)])
def test_weights_are_worked_out_while_those_before_are_multiplied(heads, causal):
    """For heads of 256 on Hopper: in the loop one wait for products, after those of queries and keys."""
    program = _BUILD.format(capability=90, cases=[], kernels=())
    program += f"""
case = attention_matrix.Case({heads}, 512, 600, causal={causal})
build, = attention_matrix.builds("bfloat16", 256, case, ["walk"])
print(json.dumps([build["given"]["LATE"], build["stack"] + build["local"], build["asm"]["ttgir"]]))
"""
    late, stack, code = json.loads(run_compiled(program).splitlines()[-1])
    assert late
    assert stack == 0
    loop = code[code.index(" scf.for ") :]
    loop = loop[: loop.index("\n      scf.yield ")]
    product, wait, load, weights = "warp_group_dot", "warp_group_dot_wait", "async_tma_copy", "math.exp2"
    found = re.findall(rf"{wait}|{product}|{load}|{weights} \S+ : tensor<128x64", loop)
    steps = [step.split()[0] for step in found]
    assert steps == [product, wait, product, load, load, weights, weights]


@pytest.mark.parametrize("capability", [86, 90])
def test_large_heads_fit(capability):
    """In shared memory; those of 1,024 once asked for more than 86 has, and spilled up to 1,776 bytes."""
    cases = [("bfloat16", 512, *PREFILL), ("bfloat16", 512, *WINDOW), ("float32", 512, *PREFILL)]
    cases += [("bfloat16", 1024, *PREFILL), ("bfloat16", 1024, *FEW), ("float32", 1024, *PREFILL)]
    for dtype, size, kind, pieces, order, stack, _ in _built(capability, cases):
        assert stack == 0, (dtype, size, kind, stack)
        if kind in ("walk", "apart", "careful"):
            assert order == _order(dtype, pieces, kind == "careful")


def _order(dtype: str, pieces: list[int], careful: bool) -> str:
    """The steps of a kernel: a product that is added to one before it continues its chain.

    So in how many pieces a chain is multiplied changes no bits. It is told, since a list of steps does not
    tell what a product is added to: that they are added in order is what comparisons with the oracle show.
    """
    each = 1 if dtype == "float32" else 16
    products, kinds = {f"chain{each}[{length}]" for length in pieces if length}, set()
    if dtype != "float32":
        kinds = {{"bfloat16": "bf16 k16", "float16": "f16 k16"}[dtype]}
    if careful:
        # What is not finite is counted, in bf16.
        products, kinds = products | {"chain16[64]"}, kinds | {"bf16 k16"}
    kind = ", ".join(sorted(kinds)) or "scalar instructions"
    return f"products {', '.join(sorted(products))}; sums of 2 by {kind}"
