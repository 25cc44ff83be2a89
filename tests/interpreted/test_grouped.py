"""Grouped products in Triton without a GPU: every group has the bits of `mm` alone, in the interpreter.

As in `test_contraction`, the instruction of the tensor core is a model, the same for kernel and oracle.
"""

import pytest
import torch

from bi_compile import numerics
from tests.bits import assert_same_bits, order_sensitive
from tests.interpreted import interpreter
from tests.templates.test_grouped import SHAPES, groups_of, operands

from bi_compile.templates.contraction import gpu, gpu_configs, gpu_grouped, gpu_oracle, gpu_tuning  # isort: skip
from bi_compile.templates.contraction.gpu_configs import Config  # isort: skip
from bi_compile.templates.gpu import device  # isort: skip
from tests.interpreted.test_contraction import AMPERE, HOPPER, dot  # isort: skip

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DESCRIBED = {"descriptors": True}
FORMS = {
    "pointers": {},
    "swapped": {"swap": True},
    "described": DESCRIBED,
    "both": DESCRIBED | {"swap": True},
    "pieces": {"block_m": 32, "warps": 1},
    "described pieces": DESCRIBED | {"block_m": 32, "warps": 1},
}
# Empty groups, one longer than a tile, and rows behind the last one.
ENDS = [0, 3, 3, 24, 25]
BEHIND = 4


@pytest.fixture(autouse=True)
def small_chunks_on_a_hopper(monkeypatch):
    interpreter.use_dot(dot)
    monkeypatch.setattr(device, "processor", lambda index: HOPPER)
    monkeypatch.setattr(gpu_tuning, "tuned", lambda index: {})
    for name in ("CONTRACTION_GPU_CHUNK", "CONTRACTION_GPU_FP32_CHUNK", "CONTRACTION_CHUNK"):
        monkeypatch.setattr(numerics, name, 32)
    caches = (gpu._plan, gpu_grouped._plan, gpu_configs.choose)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def check(kind, dtype, form="pointers", k=72, ends=ENDS, offs=torch.int32, config=None):
    a, b = operands(kind, [ends[-1] + BEHIND], k=k, m=18, n=40, dtype=dtype)
    experts = len(ends)
    if kind == "rows":
        # As transformers hands them over: the summed dim side by side.
        b = order_sensitive(experts, 40, k, dtype=dtype).mT
    elif kind == "columns":
        a = order_sensitive(experts, 18, k, dtype=dtype)
    a = a / 64  # or sums in fp16 would be infinite
    if config is None:
        tile = {"block_m": 16, "block_n": 32, "block_k": 32, "warps": 4, "stages": 3}
        config = Config(**{**tile, **FORMS[form]}) if dtype != FP64 else None
    out = gpu_grouped.grouped_mm(a, b, torch.tensor(ends, dtype=offs), config=config)
    for group, part in enumerate(groups_of(ends)):
        x, y = SHAPES[kind][1](a, b, group, part)
        place = {"rows": part, "columns": (slice(None), part), "summed": group}[kind]
        want = gpu.mm(x, y) if dtype == FP64 else gpu_oracle.product(x, y)
        assert_same_bits(out[place].contiguous(), want, f"group {group}")
    behind = {"rows": out[ends[-1] :], "columns": out[:, ends[-1] :], "summed": out[:0]}[kind]
    assert not behind.any()
    return a, b, out


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_every_group_equals_the_oracle_alone(kind, dtype):
    check(kind, dtype)


@pytest.mark.parametrize("form", FORMS)
def test_every_way_through_rows(form):
    check("rows", BF16, form)
    check("rows", BF16, form, k=64, ends=[1, 1, 2, 2, 2], offs=torch.int64)


def test_descriptors_of_weights_that_lie_the_other_way():
    a, b, out = check("rows", BF16, "described", k=64)
    config = Config(16, 32, 32, 4, 3, descriptors=True)
    ends = torch.tensor(ENDS)
    assert_same_bits(gpu_grouped.grouped_mm(a, b.contiguous(), ends, config=config), out)
    poisoned = b.clone()
    poisoned[3] = torch.nan
    found = gpu_grouped.grouped_mm(a, poisoned, ends, config=config)
    assert_same_bits(found[:3], out[:3], "the next group's weights")
    assert found[3:24].isnan().all()


@pytest.mark.parametrize("processor", [HOPPER, AMPERE], ids=["hopper", "ampere"])
def test_the_chosen_configurations(processor, monkeypatch):
    monkeypatch.setattr(device, "processor", lambda index: processor)
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_CHUNK", 256)
    for kind in SHAPES:
        config = gpu_configs.choose(processor, BF16, 5, 6, 40, 72, kind == "rows", plain=True)
        check(kind, BF16, config=config)


def test_a_row_does_not_see_how_many_share_its_expert(monkeypatch):
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_CHUNK", 256)
    a, b = operands("rows", [7, 20, 31], k=72, n=24, dtype=BF16)
    whole = gpu_grouped.grouped_mm(a, b, torch.tensor([7, 20, 31]))
    for row, ends in ((3, [1, 1, 1]), (12, [0, 1, 1]), (30, [0, 0, 1])):
        alone = gpu_grouped.grouped_mm(a[row : row + 1], b, torch.tensor(ends))
        assert_same_bits(alone, whole[row : row + 1], f"row {row}")


def test_no_groups_and_nothing_in_them(monkeypatch):
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_FP32_CHUNK", 64)
    assert not gpu_grouped.grouped_mm(torch.ones(3, 4), torch.ones(0, 4, 5), torch.ones(0).int()).any()
    b = torch.ones(2, 4, 5)
    assert gpu_grouped.grouped_mm(torch.ones(0, 4), b, torch.tensor([0, 0])).shape == (0, 5)
    assert not gpu_grouped.grouped_mm(torch.full((3, 4), torch.nan), b, torch.tensor([0, 0])).any()
    empty = gpu_grouped.grouped_mm(torch.ones(3, 0), torch.ones(2, 0, 5), torch.tensor([1, 2]))
    assert_same_bits(empty, torch.zeros(3, 5))
