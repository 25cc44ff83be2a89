"""Kernels in other orders than a product's have other certificates, or none."""

import json
from importlib.util import find_spec

import pytest

from tests.interpreted.compiled import run_compiled

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

PLAIN = "chain16[K](0; a*b) by bf16 k16"


def evaluated(expression: str):
    """The value of an expression in `controls_compiled`, in a process without the interpreter."""
    program = "import json; from tests.interpreted.controls_compiled import *\n"
    return json.loads(run_compiled(f"{program}print(json.dumps({expression}))"))


@pytest.mark.parametrize("capability", [90, 100])
def test_another_order_is_another_certificate(capability):
    found = evaluated(f"controls({capability})")
    assert found["plain"] == found["other tile"] == found["large tile"] == PLAIN
    # What the source splits in two the compiler folds into one chain.
    assert found["split that is folded"] == PLAIN
    names = [
        "plain", "split", "tf32", "tf32 of widened bf16", "tf32x3 of 16", "tf32x3 of 32", "tf32x3 swapped",
        "two sums", "begun", "each twice", "not cleared",
    ]  # fmt: skip
    blocks = [found[f"added in blocks of {k}"] for k in (32, 64)]
    if capability < 100:
        names += ["added in blocks of 32", "added in blocks of 64"]
    else:  # where they are read a step later than they are summed, which is not followed
        assert all(order.startswith("unknown: ") for order in blocks)
    assert len({found[name] for name in names}) == len(names), found
    assert found["sum of 4 warps"] != found["sum of 8 warps"]
    assert found["tree of 4 warps"] == found["tree of 8 warps"]


def test_sums_in_memory_are_followed_line_by_line():
    found = evaluated("altered()")
    chunks = "bf16(sum[4096 of K](0; chain16[4096](0; a*b))) by bf16 k16"
    assert found.pop("waiting: nothing") == chunks
    # This one is followed: what is loaded are zeros.
    assert found.pop("waiting: never stored") == f"bf16(0); {chunks}"
    own = {dtype: found.pop(f"{dtype}: nothing") for dtype in ("bfloat16", "float32")}
    assert own["bfloat16"] == f"bf16({PLAIN.replace(' by', ') by')}"
    assert own["float32"].startswith("sum[32 of K](0; dot8[32](tf32(a)*tf32(b); ")
    assert len(found) == 22
    # This one is followed: a step more, if there is none.
    more = found.pop("bfloat16: first step always")
    assert more == "bf16(chain16[its K](dot16[128](a*b; 0); a*b)) by bf16 k16"
    assert all(order.startswith("unknown: ") for order in found.values()), found


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r2 + 0 ], %rd3, %rd4, %r5, %p6;", "bf16 k16"),
        ("@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r2 + 0 ], [ %r3 + 0 ], %rd4, %r5, %p6;", "bf16 k16"),
        ("@%p1 tcgen05.mma.cta_group::1.kind::tf32 [ %r2 + 0 ], %rd3, %rd4, %r5, %p6;", None),
        ("@%p1 tcgen05.mma.cta_group::2.kind::f16 [ %r2 + 0 ], %rd3, %rd4, %r5, %p6;", None),
        ("@%p1 tcgen05.mma.ws.cta_group::1.kind::f16 [ %r2 + 0 ], %rd3, %rd4, %r5, %p6;", None),
        ("@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r2 + 0 ], %rd3, %rd4, %r7, %p6;", None),
        ("@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r2 + 0 ], %rd3, %rd4, %r8, %p6;", None),
        ("@%p1 tcgen05.mma.cta_group::1.kind::f16 [ %r2 + 0 ], %rd3, %rd4, %r9, %p6;", None),
    ],
)
def test_the_instruction_has_to_be_known(line, told):
    """r5 describes bf16 products of 64 x 64; r7 sums in fp16, r8 is worked out, r9 is not there."""
    program = f"""
from bi_compile.templates.gpu.instructions import instructions
given = "\\tmov.b32 \\t%r5, 68158608;\\n\\tmov.b32 \\t%r7, 68158592;\\n\\tadd.s32 \\t%r8, %r1, 68158608;\\n"
try:
    print(*instructions(given + {line!r}))
except ValueError as error:
    print("unknown:", error)
"""
    found = run_compiled(program).strip()
    assert found == told if told else found.startswith("unknown: ")
