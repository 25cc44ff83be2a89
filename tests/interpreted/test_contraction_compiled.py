"""The shipped products as compiled for GPUs: one order of summation, and no spills."""

import json
from importlib.util import find_spec

import pytest

from tests.interpreted.compiled import run_compiled

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

CHAIN = "chain16[{}](0; a*b)"
SMALL = "dot8[32](sub(b, tf32(b))*tf32(a); dot8[32](sub(a, tf32(a))*tf32(b); 0))"
BLOCK = f"dot8[32](tf32(a)*tf32(b); 0 if NaN({SMALL}))"
ORDERS = {
    "bfloat16": {
        "one": f"bf16({CHAIN.format('K')}) by bf16 k16",
        "sequence": f"bf16(sum[4096 of K](0; {CHAIN.format(4096)})) by bf16 k16",
    },
    "float16": {
        "one": f"f16({CHAIN.format('K')}) by f16 k16",
        "sequence": f"f16(sum[4096 of K](0; {CHAIN.format(4096)})) by f16 k16",
    },
    "float32": {
        "one": f"sum[32 of K](0; {BLOCK}) by tf32 k8",
        "sequence": f"sum[512 of K](0; sum[32 of 512](0; {BLOCK})) by tf32 k8",
    },
}
OLD = {"mma.sync"}
FAMILIES = {80: OLD, 86: OLD, 89: OLD, 90: {"mma.sync", "wgmma.mma_async"}, 100: {"tcgen05.mma"}}


def again(*values):
    """A case of which others show much already; with all of them two cores take over five minutes."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def evaluated(expression: str):
    """The value of an expression in `contraction_compiled`, in a process without the interpreter."""
    program = "import json; from tests.interpreted.contraction_compiled import *\n"
    return json.loads(run_compiled(f"{program}print(json.dumps({expression}))"))


@pytest.mark.parametrize(
    ("capability", "dtype", "forms"),
    [
        (80, "bfloat16", ["one", "sequence"]),
        (80, "float16", ["one"]),
        (80, "float32", ["one", "sequence"]),
        (86, "bfloat16", ["one", "sequence"]),
        (86, "float16", ["one"]),
        (86, "float32", ["one"]),
        (89, "bfloat16", ["one"]),
        (89, "float16", ["one"]),
        (89, "float32", ["one", "sequence"]),
        (90, "bfloat16", ["one", "sequence", "parallel"]),
        (90, "float16", ["one"]),
        (90, "float32", ["one", "sequence", "parallel"]),
        (100, "bfloat16", ["one", "sequence", "parallel"]),
        (100, "float16", ["one"]),
        (100, "float32", ["one", "sequence", "parallel"]),
    ],
)
def test_every_shipped_configuration(capability, dtype, forms):
    rows = evaluated(f"table({capability}, torch.{dtype}, {forms})")
    assert {row["form"] for row in rows} == set(forms)
    for row in rows:
        assert row["shared_memory"] <= row["limit"], row
        assert set(row["families"]) <= FAMILIES[capability], row
        assert row["spilled"] == 0, row
        # In parallel the chunks are those of the walk in sequence.
        form = row["form"].replace("parallel", "sequence")
        assert row["order"] == ORDERS[dtype][form], row


LEAST_AND_MOST = [(False, None), (True, "sum")]
BETWEEN = [(True, None), (False, "sum")]


@pytest.mark.parametrize(
    ("capability", "dtype", "form", "ways"),
    [
        (80, "bfloat16", "one", LEAST_AND_MOST),
        again(80, "bfloat16", "one", BETWEEN),
        (90, "bfloat16", "one", LEAST_AND_MOST),
        again(90, "bfloat16", "one", BETWEEN),
        again(90, "float16", "sequence", LEAST_AND_MOST + BETWEEN),
        (90, "float32", "one", LEAST_AND_MOST),
        again(90, "float32", "one", BETWEEN),
    ],
)
def test_with_matrices_to_add(capability, dtype, form, ways):
    rows = evaluated(f"added({capability}, torch.{dtype}, {form!r}, {ways})")
    assert rows
    assert [row for row in rows if row[-1]] == []


SUM = "f32(bf16(add({})))"
SILU = "bf16(precise_divf({0}, add(1, __nv_expf(mul(-1, {0})))))"
GATED = f"bf16(mul({SUM}, f32({SILU.format('f32(other)')})))"
FINISHED = {
    "silu": SILU.format(SUM),
    "gelu": f"bf16(mul(add(1, __nv_erff(mul(0.707106769, {SUM}))), mul(5.000000e-01, {SUM})))",
    "gated": GATED,
    "sum": f"bf16(add({SUM}, f32(other)))",
}


@pytest.mark.parametrize(
    ("capability", "dtype", "names", "form"),
    [
        (80, "bfloat16", ["gelu", "sum"], "one"),
        (80, "float32", ["silu"], "sequence"),
        (90, "bfloat16", ["gelu", "sum"], "one"),
        again(90, "bfloat16", ["relu squared", "gated"], "one"),
        (90, "bfloat16", ["silu"], "sequence"),
        (90, "bfloat16", ["gated"], "parallel"),
        again(90, "float16", ["silu"], "one"),
        (90, "float32", ["gelu tanh", "sum"], "one"),
        (100, "bfloat16", ["gated"], "one"),
        again(100, "bfloat16", ["relu", "sum"], "one"),
        (100, "bfloat16", ["relu squared"], "sequence"),
        (100, "float32", ["gelu"], "sequence"),
    ],
)
def test_products_with_epilogues(capability, dtype, names, form):
    rows = evaluated(f"finished({capability}, torch.{dtype}, {names}, {form!r})")
    assert {row["name"] for row in rows} == set(names)
    for row in rows:
        assert row["shared_memory"] <= row["limit"], row
        assert row["spilled"] == 0, row
        same = [other["order"] for other in rows if other["name"] == row["name"]]
        assert set(same) == {row["order"]}
        assert "products fused into sums" not in row["order"]
        if dtype == "bfloat16" and row["name"] in FINISHED:
            order = ORDERS[dtype][form.replace("parallel", "sequence")]
            terms = sorted([order.removeprefix("bf16(").removesuffix(") by bf16 k16"), "f32(c)"])
            assert row["order"] == f"{FINISHED[row['name']].replace('{}', ', '.join(terms))} by bf16 k16"


@pytest.mark.parametrize(
    ("capability", "dtype", "cut"),
    [
        (80, "bfloat16", "K"),
        (86, "float16", "N"),
        (90, "bfloat16", "M"),
        (80, "float32", "N"),
        (90, "float32", "M"),
        (100, "bfloat16", "M"),
        (100, "float16", "K"),
        (100, "float32", "N"),
    ],
)
def test_groups_have_the_order_of_products(capability, dtype, cut):
    rows = evaluated(f"grouped({capability}, torch.{dtype}, {cut!r})")
    assert rows
    for row in rows:
        assert row["spilled"] == 0, row
        expected = ORDERS[dtype]["sequence" if row["chunked"] else "one"]
        assert row["order"].replace("its K", "K") == expected, row


@pytest.mark.parametrize(
    ("capability", "dtype", "names"),
    [
        (80, "bfloat16", ["sum"]),
        again(80, "bfloat16", ["silu"]),
        (80, "float32", ["gated"]),
        (90, "bfloat16", ["gated"]),
        again(90, "bfloat16", ["silu", "sum"]),
        (90, "float32", ["gated"]),
        (100, "bfloat16", ["silu"]),
        again(100, "bfloat16", ["gated", "sum"]),
    ],
)
def test_groups_with_epilogues(capability, dtype, names):
    rows = evaluated(f"grouped_finished({capability}, torch.{dtype}, {names})")
    assert {row["name"] for row in rows} == set(names)
    for row in rows:
        assert row["spilled"] == 0, row
        alike = [r["order"] for r in rows if (r["name"], r["chunked"]) == (row["name"], row["chunked"])]
        assert set(alike) == {row["order"]}
        if dtype == "bfloat16" and row["name"] in ("silu", "sum"):
            order = ORDERS[dtype]["sequence" if row["chunked"] else "one"].removesuffix(" by bf16 k16")
            expected = FINISHED[row["name"]].replace(SUM, f"f32({order})")
            assert row["order"].replace("its K", "K") == f"{expected} by bf16 k16"


@pytest.mark.parametrize(
    ("capability", "dtype"), [(90, "bfloat16"), again(90, "float32"), again(100, "bfloat16")]
)
def test_halves_have_the_order_of_products(capability, dtype):
    rows = evaluated(f"halves({capability}, torch.{dtype})")
    assert {row["name"] for row in rows} == {"gated halves", "gate behind"}
    for row in rows:
        row["order"] = row["order"].replace("its K", "K")
    for row in rows:
        assert row["spilled"] == 0, row
        assert row["shared_memory"] <= row["limit"], row
        alike = [r["order"] for r in rows if (r["name"], r["chunked"]) == (row["name"], row["chunked"])]
        assert set(alike) == {row["order"]}
        if dtype == "bfloat16" and row["name"] == "gated halves":
            half = ORDERS[dtype]["sequence" if row["chunked"] else "one"].removesuffix(" by bf16 k16")
            terms = sorted([f"f32({half})", f"f32({SILU.format(f'f32({half})')})"])
            assert row["order"] == f"bf16(mul({', '.join(terms)})) by bf16 k16"


def test_only_certified_configurations_are_tuned():
    assert evaluated("certified(90)") == "12"
    assert evaluated("certified(100)") == "12"
    shipped = evaluated("[list(config) for config in shipped(90, torch.bfloat16) if config.descriptors]")
    assert evaluated("tried(64)") == shipped
    parallel = [[*config[:7], True, *config[8:]] for config in shipped]
    assert evaluated("tried(5000)") == sorted(shipped + parallel)


def test_one_without_a_proof_stops_the_tuning():
    what, details, _ = evaluated("with_another_block()").splitlines()
    assert what == "nothing to tune on a device of capability 90: no certificate of one order"
    assert details.startswith("  Config(block_m=64, block_n=32, block_k=16,")
    assert "sums sum[512 of K](0; sum[16 of 512]" in details


def test_an_epilogue_rounds_every_operation():
    found = evaluated("epilogue(False)")
    assert found == ("bf16(add(mul(alpha, chain16[K](0; a*b)), mul(beta, f32(c)))) by bf16 k16")
    assert evaluated("epilogue(True)") == f"{found}; with products fused into sums"


_LAUNCHES = """
import torch
from bi_compile.templates.contraction import gpu, gpu_tuning
from bi_compile.templates.gpu import device
compiled.compile_launches(90)
device.processor = lambda index: device.Processor(90, 132, 232448)
gpu_tuning.tuned = lambda index: {}
relu, add = "t1 = le(p, 0.0); t2 = where(t1, 0.0, p)", "t1 = add(p, o)"
function = "t1 = float32(p); t2 = exp(t1)"
for m in (8, 4096):
    for k in (1024, 8192):
        x, w = (torch.empty(n, k, dtype=torch.bfloat16) for n in (m, 4096))
        beside = torch.empty(m, 4096, dtype=torch.bfloat16)
        for program, other in ((None, None), (relu, None), (relu, None), (add, beside), (function, None)):
            gpu._plan.cache_clear()
            gpu.product(x, w.t(), other=other, program=program)
x = torch.empty(2, 40, 64, dtype=torch.bfloat16)
gpu.product(x, x.mT, program=relu)
print(sorted({(build["name"], build["local"], hash(build["asm"]["ptx"])) for build in compiled.BUILDS}))
"""


def test_what_is_launched():
    """Through Triton's own launches, where a kernel's functions are arguments of it."""
    found = eval(run_compiled(_LAUNCHES))
    names = [name for name, _, _ in found]
    assert set(names) == {"add_chunks", "finish", "product", "product_by_descriptors"}
    assert names.count("add_chunks") == 4  # alone and with each epilogue
    assert names.count("product") == names.count("finish") == 1
    assert all(local == 0 for _, local, _ in found)
