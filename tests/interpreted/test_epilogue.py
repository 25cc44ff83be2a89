"""Products with epilogues in Triton without a GPU: the bits of the product and its ops run one by one.

Functions of libdevice are Python's here, for kernel and oracle alike.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from bi_compile import numerics
from tests.bits import assert_same_bits
from tests.interpreted import interpreter
from tests.interpreted.test_contraction import BF16, FORMS, FP16, FP32, FP64, HOPPER, config, data, dot
from tests.templates.activations import ACTIVATIONS, WITH_ANOTHER, programs

from bi_compile.templates.contraction import epilogue, gpu, gpu_configs, gpu_epilogue  # isort: skip
from bi_compile.templates.contraction import gpu_grouped, gpu_halves, gpu_oracle, gpu_tuning  # isort: skip
from bi_compile.templates.contraction.gpu_configs import Config  # isort: skip
from bi_compile.templates.gpu import device  # isort: skip

DTYPES = pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)


def by_element(name: str):
    numpy, function = interpreter.numpy, {"sigmoid": lambda x: 1 / (1 + math.exp(-x))}.get(name)
    function = function or getattr(math, name)

    def apply(x: float) -> float:
        try:
            return function(x)
        except OverflowError:
            return math.inf

    def rounded(x):
        with numpy.errstate(over="ignore"):
            return numpy.vectorize(apply, otypes=[numpy.float64])(x).astype(numpy.float32)

    return rounded


def of_block(name: str):
    tl, apply = interpreter.tl, by_element(name)
    return lambda x: tl.tensor(interpreter.interpreter.TensorHandle(apply(x.handle.data), tl.float32), x.type)


def of_tensor(x: torch.Tensor, name: str) -> torch.Tensor:
    if name == "sigmoid":
        return (1 / (1 + of_tensor(-x.float(), "exp"))).to(x.dtype)
    return torch.from_numpy(by_element(name)(x.float().numpy())).to(x.dtype)


@pytest.fixture(autouse=True)
def small_chunks_on_a_hopper(monkeypatch):
    interpreter.use_dot(dot)
    monkeypatch.setattr(device, "processor", lambda index: HOPPER)
    monkeypatch.setattr(gpu_tuning, "tuned", lambda index: {})
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_CHUNK", 256)
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_FP32_CHUNK", 64)
    functions = {name: of_block(name) for name in ("exp", "erf", "tanh", "log1p", "expm1")}
    monkeypatch.setattr(gpu_epilogue, "libdevice", SimpleNamespace(**functions))
    monkeypatch.setattr(epilogue, "unary", of_tensor)
    caches = (gpu._plan, gpu_grouped._plan, gpu_halves._plan, gpu_halves._finishing)
    caches += (gpu_configs.choose, gpu_epilogue.function)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def one_nan(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isnan(), torch.nan, x)


def check(program: str, dtype: torch.dtype, chosen: Config | None, m: int, n: int, k: int) -> None:
    a, w, c = data(m, k, dtype=dtype), data(n, k, dtype=dtype, seed=1), data(n, dtype=dtype, seed=2)
    a[0, 0] = torch.nan
    other = data(m, n, dtype=dtype, seed=3) / 512 if epilogue.reads_other(program) else None
    product = gpu_oracle.product(a, w.t() / 512, c / 512)
    expected = epilogue.run(program, product, other)
    found = gpu.product(a, w.t() / 512, c / 512, other=other, program=program, config=chosen)
    # Hosts have NaN of different payloads.
    assert_same_bits(one_nan(found), one_nan(expected), f"{program} {chosen}")
    assert product.isnan().any()
    assert not torch.equal(found.nan_to_num(), product.nan_to_num())


@DTYPES
@pytest.mark.parametrize("name", [*ACTIVATIONS, *WITH_ANOTHER])
def test_every_epilogue(name, dtype):
    check(programs(dtype)[name], dtype, config("pointers"), 5, 33, 40)


@DTYPES
@pytest.mark.parametrize("name", ["silu", "gated"])
def test_every_form(name, dtype):
    program = programs(dtype)[name]
    for form in FORMS:
        if dtype != FP32 or "swap" not in form:
            check(program, dtype, config(form), 19, 50, 296)
    check(program, dtype, None, 19, 50, 296)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_large_tiles_leave_what_is_heavy_to_a_kernel_of_its_own(dtype):
    tile, light = Config(128, 128, 32, 8, 3), programs(dtype)["sum"]
    heavy = programs(dtype)["gated"], "t1 = float32(p); t2 = exp(t1)"
    for program in (light, *heavy):
        assert epilogue.is_heavy(program) == (program in heavy)
        check(program, dtype, tile, 3, 200, 296)
    many = "; ".join(["t1 = add(p, 1.0)", *(f"t{i} = add(t{i - 1}, 1.0)" for i in range(2, 10))])
    assert epilogue.is_heavy(many)
    a, b, other = (data(2, *s, dtype=dtype) / 32 for s in ((5, 40), (40, 9), (5, 9)))
    found = gpu.product(a, b, other=other, program=heavy[0], config=tile)
    assert_same_bits(found, gpu.product(a, b, other=other, program=heavy[0]), "a batch")


def test_heavy_steps_have_a_kernel_of_their_own_from_the_second_wave_on():
    tile = Config(64, 64, 64, 4, 6, descriptors=True)
    assert tile.finishes(HOPPER, 2, 1, 64 * 22, 64 * 12)
    assert not tile.finishes(HOPPER, 2, 1, 64 * 22, 64 * 12 + 1)
    assert not tile.finishes(HOPPER, 2, 2, 64 * 22, 64 * 12)
    assert not Config(128, 128, 64, 8, 6).finishes(HOPPER, 2, 1, 1, 1)


def test_a_batch_and_a_number_of_dims():
    program = programs(BF16)["gated"]
    a, b, other = (data(2, *s, dtype=BF16) / 32 for s in ((5, 40), (40, 9), (5, 9)))
    found = gpu.product_epilogue(a, b, None, other, program)
    for i in range(2):
        assert_same_bits(found[i], gpu.product_epilogue(a[i], b[i], None, other[i], program), str(i))
    w = b[0].t().contiguous()
    linear = gpu.linear_epilogue(a, w, None, other.mT.contiguous().mT, program)
    assert_same_bits(linear[0], found[0], "linear")


def test_a_cast_changes_the_dtype_of_the_result():
    a, b = data(5, 40, dtype=BF16), data(40, 9, dtype=BF16)
    found = gpu.product_epilogue(a, b, None, None, "t1 = float32(p)")
    assert_same_bits(found, gpu.mm(a, b).float(), "cast")


def test_fp64_runs_one_by_one():
    a, b = data(5, 40, dtype=FP64), data(40, 9, dtype=FP64)
    found = gpu.product_epilogue(a, b, None, None, "t1 = le(p, 0); t2 = where(t1, 0, p)")
    assert_same_bits(found, gpu.mm(a, b).relu(), "relu")
    assert gpu.product_epilogue(a[:0], b, None, None, "t1 = neg(p)").shape == (0, 9)


# Empty groups, one longer than a tile, and rows behind the last one.
ENDS = [0, 3, 3, 24, 25]


def check_groups(kind: str, program: str, dtype: torch.dtype, chosen: Config | None, k: int = 296) -> None:
    total = ENDS[-1] + 4
    shapes = {
        "rows": ((total, k), (len(ENDS), k, 40), (total, 40)),
        "columns": ((len(ENDS), 18, k), (k, total), (18, total)),
        "summed": ((18, total), (total, 40), (len(ENDS), 18, 40)),
    }[kind]
    a, b, other = (data(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    a[..., 0] = torch.where(torch.rand(a.shape[:-1]) < 0.1, torch.nan, a[..., 0])
    a, b, other = a / 32, b / 32, other / 512 if epilogue.reads_other(program) else None
    product, begin = torch.zeros(shapes[2], dtype=dtype), 0
    for group, end in enumerate(ENDS):
        part = slice(begin, end)
        x, y = a[part] if kind == "rows" else a, b[group] if kind == "rows" else b
        if kind != "rows":
            x, y = (a[group], b[:, part]) if kind == "columns" else (a[:, part], b[part])
        place = {"rows": part, "columns": (slice(None), part), "summed": group}[kind]
        product[place] = gpu_oracle.product(x, y)
        begin = end
    expected = epilogue.run(program, product, other)
    found = gpu_grouped.grouped_mm(a, b, torch.tensor(ENDS), other, program, config=chosen)
    assert_same_bits(one_nan(found), one_nan(expected), f"{kind} {program} {chosen}")
    assert not torch.equal(found.nan_to_num(), product.nan_to_num())


@DTYPES
@pytest.mark.parametrize(
    "name", ["silu", pytest.param("relu squared", marks=pytest.mark.thorough), "gated", "sum"]
)
def test_groups_of_rows(name, dtype):
    program = programs(dtype)[name]
    for form in FORMS:
        tile = config(form)
        if not (tile.wide or tile.parallel or (dtype == FP32 and tile.swap)):
            check_groups("rows", program, dtype, tile)
    check_groups("rows", program, dtype, None)


@pytest.mark.parametrize("kind", ["columns", "summed"])
def test_groups_of_columns_and_of_the_summed_dim(kind):
    for name in ("gated", "relu"):
        check_groups(kind, programs(BF16)[name], BF16, config("pointers"), k=40)


def test_groups_leave_what_is_heavy_to_a_kernel_of_its_own(monkeypatch):
    launched, finishing = [], gpu_epilogue.finishing
    monkeypatch.setattr(gpu_epilogue, "finishing", lambda *a: launched.append(a) or finishing(*a))
    for kind, shape in {"rows": (1, 29, 40), "columns": (1, 18, 29), "summed": (5, 18, 40)}.items():
        check_groups(kind, programs(BF16)["gated"], BF16, Config(128, 128, 32, 8, 3), k=40)
        assert launched.pop()[2:] == shape
    check_groups("rows", programs(BF16)["sum"], BF16, Config(128, 128, 32, 8, 3), k=40)
    cast = "t1 = float32(p); t2 = exp(t1)"
    check_groups("rows", cast, BF16, Config(128, 128, 32, 8, 3), k=40)
    assert len(launched) == 1
    # As many tiles as there may be, of which the second wave is counted.
    monkeypatch.setattr(device, "processor", lambda index: HOPPER._replace(multiprocessors=1))
    check_groups("rows", cast, BF16, config("pointers"), k=40)
    assert len(launched) == 2


def test_no_groups_and_three_dims():
    relu = "t1 = le(p, 0); t2 = where(t1, 0, p)"
    a, b, ends = data(5, 40, dtype=BF16), data(3, 40, 9, dtype=BF16), torch.tensor([1, 2, 4])
    none = gpu.grouped_mm_epilogue(a, b[:0], torch.ones(0).int(), None, "t1 = add(p, 1.0)")
    assert_same_bits(none, torch.ones(5, 9, dtype=BF16))
    double = gpu.grouped_mm_epilogue(a.double(), b.double(), ends, None, relu)
    assert_same_bits(double, gpu_grouped.grouped_mm(a.double(), b.double(), ends).relu())
    batch = gpu.grouped_mm_epilogue(a.expand(3, 5, 40), b, None, None, relu)
    assert_same_bits(batch, gpu.product_epilogue(a.expand(3, 5, 40), b, None, None, relu))
