"""The report on a graph on a CUDA device: the certificates of its kernels as text, JSON and page."""

import json
from html import unescape
from importlib.util import find_spec

import pytest

from tests.interpreted.compiled import run_compiled
from tests.interpreted.test_contraction_compiled import ORDERS as PRODUCTS

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

_PROGRAM = """
import json, tempfile
from tests.interpreted.report_compiled import *
found = report({capability})
with tempfile.TemporaryDirectory() as folder:
    page = found.html(folder + "/page.html").read_text()
print(json.dumps([json.loads(found.json()), found.table(), page]))
"""
LONG = PRODUCTS["bfloat16"]["sequence"]
STEPS = "sums of 2 by scalar instructions"
WINDOWS = {
    "dense": "bf16(add(chain16[K](0; w*x), f32(bias))) by bf16 k16",
    "long": "bf16(add(f32(bias), sum[4096 of K](0; chain16[4096](0; w*x)))) by bf16 k16",
}
ORDERS = {
    "mm_bf16": PRODUCTS["bfloat16"]["one"],
    "mm_fp16": PRODUCTS["float16"]["one"],
    "mm_fp32": PRODUCTS["float32"]["one"],
    "mm_fp64": "chains of fused multiply-adds, added in order",
    "mm_long": LONG,
    "mm_on_the_cpu": "",
    "linear": PRODUCTS["bfloat16"]["one"],
    "addmm": PRODUCTS["bfloat16"]["one"],
    "grouped_rows": PRODUCTS["bfloat16"]["one"].replace("K", "its K"),
    "grouped_k": LONG.replace("of K", "of its K"),
    **{f"convolution_{name}": order for name, order in WINDOWS.items()},
    "attention": "products chain16[64]; sums of 2 by bf16 k16",
    "topk": "",
    **dict.fromkeys(
        (
            "sum_1", "argmax", "logsumexp", "softmax", "layer_norm", "added_rms_norm", "cumsum",
            "scatter_reduce", "cdist",
        ),
        STEPS,
    ),
}  # fmt: skip


def shown(capability: int) -> tuple[dict, str, str]:
    return tuple(json.loads(run_compiled(_PROGRAM.format(capability=capability))))


def test_every_form_of_the_report_has_the_certificates():
    facts, table, page = shown(90)
    found = {op["node"]: op["order"] for op in facts["graphs"][0]["ops"]}
    depthwise = found.pop("convolution_depthwise")
    chain = "0"
    for _ in range(4):
        chain = f"fma(f32(x), f32(w), {chain})"
    assert depthwise == f"of 2 x 2 taps quiet(bf16(add(f32(bias), {chain}))) by scalar instructions"
    assert found == ORDERS
    lines = [line.split("  ") for line in table.partition("orders of sums on CUDA devices\n")[2].splitlines()]
    told = {name: order for _, name, _, order in lines}
    assert told.pop("convolution_depthwise") == depthwise
    assert told == {name: order for name, order in found.items() if order}
    page = unescape(page)
    for order in (depthwise, *found.values()):
        assert f"<i>{order}</i>" in page or not order


def test_sums_in_tensor_memory_have_the_same_orders():
    facts, *_ = shown(100)
    found = {op["node"]: op["order"] for op in facts["graphs"][0]["ops"]}
    assert found.pop("convolution_depthwise").startswith("of 2 x 2 taps quiet(bf16(add(f32(bias), fma(")
    assert found == ORDERS


def test_a_length_that_is_not_known_has_both_orders():
    program = """
from bi_compile.report import Kernel
from bi_compile.report.orders import order
print(order(Kernel("mm", "contraction", "bfloat16", None, "", 90)))
print(order(Kernel("mm", "contraction", "float8_e5m2", 64, "", 90)))
"""
    both, unknown = run_compiled(program).splitlines()
    assert both == f"{PRODUCTS['bfloat16']['one']} up to K = 4096, {LONG} beyond"
    assert unknown.startswith("not certified: ")
