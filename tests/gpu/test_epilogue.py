"""Products with epilogues on a CUDA device: the bits of the product and its ops run one by one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from tests.bits import assert_same_bits, same_bits
from tests.templates.activations import ACTIVATIONS, WITH_ANOTHER, programs, programs_of_halves

if torch.cuda.is_available():
    from bi_compile.templates.contraction import epilogue, gpu, gpu_grouped, gpu_halves
    from tests.gpu.test_contraction import configurations, data
    from tests.gpu.test_grouped import ENDS, ends

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ROWS = (1, 5, 64, 257, 1024)


def factors(k: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """a, b, bias and another tensor, of which sums lie where activations bend."""
    a, w = data(max(ROWS), k, dtype=dtype), data(n, k, dtype=dtype, seed=1)
    scale = 2.0**-18 if dtype != FP16 else 2.0**-10
    a = a / 2**8 if dtype == FP16 else a
    return (
        a,
        (w * scale).t(),
        data(n, dtype=dtype, seed=2) / 1024,
        data(max(ROWS), n, dtype=dtype, seed=3) / 1024,
    )


@pytest.mark.parametrize(
    ("dtype", "k", "name"),
    [(BF16, 400, "gated"), (BF16, 4592, "gelu"), (FP16, 400, "gelu tanh"), (FP32, 4592, "gated")],
    ids=str,
)
def test_every_shipped_configuration(dtype, k, name):
    a, b, bias, other = factors(k, 528, dtype)
    program = programs(dtype)[name]
    beside = other if epilogue.reads_other(program) else None
    expected = epilogue.run(program, gpu.product(a, b, bias), beside)
    assert not same_bits(expected, gpu.product(a, b, bias))
    for config in configurations(dtype):
        if config.parallel and k == 400:
            continue
        for m in ROWS:
            more = None if beside is None else beside[:m]
            found = gpu.product(a[:m], b, bias, other=more, program=program, config=config)
            assert_same_bits(found, expected[:m], f"{config} {m}")
    found = gpu.product(a, b, bias, other=beside, program=program)
    assert_same_bits(found, expected, "the chosen one")


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_every_epilogue(dtype):
    a, b, bias, other = factors(400, 136, dtype)
    product = gpu.product(a[:33], b, bias)
    for name, program in programs(dtype).items():
        more = other[:33] if name in WITH_ANOTHER else None
        found = gpu.product(a[:33], b, bias, other=more, program=program)
        assert_same_bits(found, epilogue.run(program, product, more), name)
        function = {**ACTIVATIONS, **WITH_ANOTHER}[name]
        exact = function(*(t.double() for t in (product, *(() if more is None else (more,)))))
        tolerance = {"rtol": 2.0**-4, "atol": 2.0**-7} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found.double(), exact, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("dtype", "k", "name"), [(BF16, 400, "gated"), (BF16, 4592, "sum"), (FP32, 400, "gelu")], ids=str
)
def test_grouped_products(dtype, k, name):
    a, _, _, other = factors(k, 528, dtype)
    a, other = a[: ENDS[-1] + 6], other[: ENDS[-1] + 6]
    b = data(len(ENDS), 528, k, dtype=dtype, seed=1).mT * 2.0**-18
    program = programs(dtype)[name]
    beside = other if epilogue.reads_other(program) else None
    product = gpu_grouped.grouped_mm(a, b, ends(ENDS))
    expected = epilogue.run(program, product, beside)
    assert not same_bits(expected, product)
    for config in (c for c in configurations(dtype) if not (c.wide or c.parallel)):
        found = gpu_grouped.grouped_mm(a, b, ends(ENDS), beside, program, config=config)
        assert_same_bits(found, expected, f"{config}")
    assert_same_bits(gpu_grouped.grouped_mm(a, b, ends(ENDS), beside, program), expected, "the chosen one")
    for row, group in ((1, 3), (149, 3), (160, 4)):
        routed, more = (
            ends([0] * group + [1] * (len(ENDS) - group)),
            None if beside is None else beside[row : row + 1],
        )
        found = gpu_grouped.grouped_mm(a[row : row + 1], b, routed, more, program)
        assert_same_bits(found[0], expected[row], f"row {row} alone")


@pytest.mark.parametrize(("dtype", "k"), [(BF16, 400), (BF16, 4592), (FP32, 400)], ids=str)
def test_both_halves_of_a_product(dtype, k):
    a, b, _, _ = factors(k, 528, dtype)
    weights = data(len(ENDS), 528, k, dtype=dtype, seed=1).mT * 2.0**-18
    program = programs_of_halves(dtype)["gated halves"]
    rows = a[: ENDS[-1] + 6]
    products = gpu.product(a[:257], b), gpu_grouped.grouped_mm(rows, weights, ends(ENDS))
    expected = [epilogue.run(program, product, None) for product in products]
    tiles = {
        tile
        for config in configurations(dtype)
        if not config.parallel and (tile := gpu_halves.tile_of(config))
    }
    assert tiles
    for tile in (*tiles, None):
        for m in (257, 5, 1):
            found = gpu_halves.side_by_side(a[:m], b, None, None, program, config=tile)
            if found is None:
                assert tile is None, "not asked for"
                found = gpu_halves.finish(products[0][:m], None, program)
            assert_same_bits(found, expected[0][:m], f"{tile} {m}")
        if tile is not None:
            found = gpu_halves.side_by_side(rows, weights, ends(ENDS), None, program, config=tile)
            assert_same_bits(found, expected[1], f"groups {tile}")
    found = gpu.grouped_mm_epilogue(rows, weights, ends(ENDS), None, program)
    assert_same_bits(found, expected[1], "the chosen one")
    exact = torch.nn.functional.silu(products[0][:, :264].double()) * products[0][:, 264:].double()
    tolerance = {"rtol": 2.0**-6, "atol": 2.0**-9} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(expected[0].double(), exact, **tolerance)


class Perceptrons(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(*s, bias=False) for s in ((256, 688), (256, 688), (688, 256))
        )
        self.first, self.second = nn.Linear(256, 1024), nn.Linear(1024, 256)
        self.both, self.back = nn.Linear(256, 1376, bias=False), nn.Linear(688, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        gate, up = self.both(x).chunk(2, dim=-1)
        x = x + self.back(F.silu(gate) * up)
        return x + self.second(F.gelu(self.first(x)))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_a_compiled_model_has_the_bits_of_eager_mode(dtype, tmp_path):
    torch.compiler.reset()
    model = Perceptrons().to("cuda", dtype).requires_grad_(False)
    compiled = torch.compile(model, backend="batch_invariant", options={"dump": str(tmp_path)})
    x = torch.randn(300, 256, device="cuda").to(dtype)
    with bi_compile.eager():
        expected = model(x)
    for m in (300, 3, 1):
        assert_same_bits(compiled(x[:m]), expected[:m], str(m))
    graphs = [file.read_text() for file in sorted(tmp_path.glob("*/*joined.py"))]
    assert graphs
    for graph in graphs:
        assert graph.count("linear_epilogue.default(") == 6, graph
