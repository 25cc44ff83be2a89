"""Convolutions in Triton without a GPU: the oracle's bits in the interpreter, whatever the tile.

As in `test_contraction`, the instruction of the tensor core is a model, the same for kernel and oracle.
"""

import pytest
import torch

from bi_compile import numerics
from tests.bits import assert_same_bits, order_sensitive
from tests.interpreted import interpreter
from tests.templates.convolution_layers import LAYERS, layer

from bi_compile.templates.contraction import gpu as contraction  # isort: skip
from bi_compile.templates.convolution import gpu, gpu_oracle, gpu_tiles  # isort: skip
from bi_compile.templates.convolution.gpu_depthwise import Block  # isort: skip
from bi_compile.templates.gpu import device  # isort: skip
from tests.interpreted.test_contraction import dot  # isort: skip

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
AMPERE = device.Processor(80, 108, 166912)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    interpreter.use_dot(dot)
    monkeypatch.setattr(device, "processor", lambda index: AMPERE)
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_CHUNK", 64)
    monkeypatch.setattr(numerics, "CONTRACTION_GPU_FP32_CHUNK", 64)
    for cached in (gpu._plan, contraction._plan):
        cached.cache_clear()
    yield
    for cached in (gpu._plan, contraction._plan):
        cached.cache_clear()


def small(name: str, samples: int, dtype: torch.dtype):
    """A layer on images of few windows: the interpreter is slow."""
    x, w, bias, arguments = layer(name, samples, dtype)
    spans = [dilation * (taps - 1) + 3 for dilation, taps in zip(arguments[2], w.shape[2:], strict=True)]
    return x[(..., *map(slice, spans))], w, bias, arguments


@pytest.mark.parametrize(("name", "dtype"), list(zip(LAYERS, [BF16, FP32, FP16] * 5, strict=False)), ids=str)
def test_equals_the_oracle(name, dtype):
    x, w, bias, arguments = small(name, 2, dtype)
    expected = gpu_oracle.convolution(x, w, bias, *arguments)
    assert_same_bits(gpu.convolution(x, w, bias, *arguments), expected, name)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_tiles_change_no_bit(dtype):
    x, w, bias, arguments = small("groups, strides and dilation", 2, dtype)
    expected = gpu.convolution(x, w, bias, *arguments)
    for tile in gpu_tiles.shipped(AMPERE, dtype):
        assert_same_bits(gpu.convolution(x, w, bias, *arguments, tile=tile), expected, f"{tile}")
    # Blocks of K of one tap and of several.
    x, w, bias = (order_sensitive(*s, dtype=dtype) for s in ((1, 32, 4, 5), (20, 32, 3, 3), (20,)))
    arguments = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    expected = gpu_oracle.convolution(x, w, bias, *arguments)
    for tile in {*gpu_tiles.shipped(AMPERE, dtype), gpu_tiles.Tile(16, 64, 16 if dtype == BF16 else 32, 4)}:
        assert_same_bits(gpu.convolution(x, w, bias, *arguments, tile=tile), expected, f"{tile}")


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("name", ["depthwise", "depthwise, stride", "transposed, depthwise", "depthwise, 1d"])
def test_depthwise_ones_have_the_bits_of_the_cpu_in_every_block(name, dtype):
    x, w, bias, arguments = small(name, 2, dtype)
    generator = torch.Generator().manual_seed(0)
    # Numbers that cancel hide whether a product is rounded before it is added.
    alike = [torch.randn(y.shape, generator=generator).to(dtype) for y in (x, w, bias)]
    for operands in ((x, w, bias), alike):
        expected = torch.ops.bi_compile.convolution(*operands, *arguments)
        for block in (Block(16, 1, 4), Block(32, 2, 4), Block(16, 4, 4)):
            assert_same_bits(gpu.convolution(*operands, *arguments, tile=block), expected, f"{block}")


def test_fp64_is_the_product_of_weights_and_windows(monkeypatch):
    x, w, bias = (torch.randn(*shape, dtype=FP64) for shape in ((2, 2, 3, 5), (5, 2, 3, 3), (5,)))
    monkeypatch.setattr(numerics, "CONTRACTION_CHUNK", 8)
    windows = torch.nn.functional.unfold(x, 3, padding=1).unflatten(1, (2, 9)).transpose(1, 2).flatten(1, 2)
    a = w.movedim(1, -1).reshape(1, 5, 18).expand(2, 5, 18)
    expected = contraction.baddbmm(bias.reshape(1, 5, 1), a, windows).reshape(2, 5, 3, 5)
    arguments = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    assert_same_bits(gpu.convolution(x, w, bias, *arguments), expected)
    torch.testing.assert_close(expected, torch.convolution(x, w, bias, *arguments))


@pytest.mark.parametrize("name", ["3x3", "depthwise, stride", "transposed, groups"])
def test_a_sample_does_not_see_the_batch(name):
    x, w, bias, arguments = small(name, 5, BF16)
    whole = gpu.convolution(x, w, bias, *arguments)
    x[[0, 3]] = torch.nan
    assert_same_bits(gpu.convolution(x, w, bias, *arguments)[[1, 2, 4]], whole[[1, 2, 4]], "neighbours")
    strided = torch.full((*x.shape, 2), torch.nan, dtype=BF16)[..., 1].copy_(x)
    assert_same_bits(gpu.convolution(strided[2:3], w, bias, *arguments), whole[2:3], "a view of one alone")


def test_padding_is_zeros_multiplied_like_others():
    x, w = torch.randn(2, 4, 6, 7), torch.randn(4, 4, 3, 3)
    w[1, 0, 0, 0] = torch.inf
    found = gpu.convolution(x, w, None, (1, 1), (1, 2), (1, 1), False, (0, 0), 1)
    assert found[:, 1, 0].isnan().all()
    assert found[:, [0, 2, 3]].isfinite().all()


def test_nothing_to_sum():
    plain = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    assert gpu.convolution(torch.empty(0, 3, 5, 5), torch.empty(4, 3, 3, 3), None, *plain).numel() == 0
    assert gpu.convolution(torch.empty(2, 3, 5, 5), torch.empty(0, 3, 3, 3), None, *plain).numel() == 0
    bias = torch.randn(4)
    found = gpu.convolution(torch.empty(2, 0, 5, 5), torch.empty(4, 0, 3, 3), bias, *plain)
    assert_same_bits(found, bias.reshape(1, 4, 1, 1).expand(2, 4, 3, 3).contiguous(), "bias alone")
    # A stride beyond the kernel: most outputs of a transposed convolution meet no tap.
    arguments = ((3,), (0,), (1,), True, (0,), 1)
    found = gpu.convolution(torch.ones(1, 1, 2), torch.ones(1, 1, 1), None, *arguments)
    assert_same_bits(found, torch.tensor([[[1.0, 0, 0, 1]]]))
