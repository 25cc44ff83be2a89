"""Convolutions on a CUDA device: one order of summation for every batch, layout and tile."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from tests.bits import assert_same_bits, order_sensitive, same_bits
from tests.templates.convolution_layers import LAYERS, layer

if torch.cuda.is_available():
    from bi_compile.templates.convolution import gpu, gpu_depthwise, gpu_oracle, gpu_tiles, oracle
    from bi_compile.templates.gpu import device

bi = torch.ops.bi_compile
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
EACH_DTYPE = pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)
SIZES = (1, 2, 3, 4, 7, 8, 16, 33)


def on_device(name: str, samples: int, dtype: torch.dtype):
    x, w, bias, arguments = layer(name, samples, dtype)
    return x.cuda(), w.cuda(), bias.cuda(), arguments


@EACH_LAYER
def test_equals_the_oracle(name):
    if device.processor(torch.cuda.current_device()).capability != 90:
        pytest.skip("the model of the tensor core is that of Hopper")
    for dtype in (BF16, FP16, FP32):
        x, w, bias, arguments = layer(name, 2, dtype)
        # The model of the tensor core is not that of subnormal numbers.
        x, w, bias = (torch.randn_like(t) for t in (x, w, bias))
        x, w, bias = (t + 0.01 * t.sign() for t in (x, w, bias))
        expected = gpu_oracle.convolution(x, w, bias, *arguments)
        found = bi.convolution(x.cuda(), w.cuda(), bias.cuda(), *arguments)
        assert_same_bits(found.cpu(), expected, f"{dtype}")


@EACH_DTYPE
@pytest.mark.parametrize("inputs", [40, 64, 512], ids=["taps share a block", "one chunk", "chunks"])
def test_is_the_product_of_weights_and_windows_in_every_tile(dtype, inputs):
    x, w, bias = (
        order_sensitive(*s, dtype=dtype).cuda() for s in ((5, inputs, 11, 9), (80, inputs, 3, 3), (80,))
    )
    windows = F.unfold(x, 3, padding=1).unflatten(1, (inputs, 9)).transpose(1, 2).flatten(1, 2)
    a, c = w.movedim(1, -1).reshape(1, 80, -1).expand(5, 80, inputs * 9), bias.reshape(1, 80, 1)
    expected = bi.baddbmm(c, a, windows).reshape(5, 80, 11, 9)
    arguments = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    assert_same_bits(bi.convolution(x, w, bias, *arguments), expected, "chosen")
    for tile in gpu_tiles.shipped(device.processor(torch.cuda.current_device()), dtype):
        assert_same_bits(gpu.convolution(x, w, bias, *arguments, tile=tile), expected, f"{tile}")
        assert_same_bits(gpu.convolution(x[3:4], w, bias, *arguments, tile=tile), expected[3:4], f"{tile}")


@EACH_DTYPE
@pytest.mark.parametrize("name", [name for name in LAYERS if "depthwise" in name])
def test_depthwise_ones_have_the_bits_of_the_cpu_in_every_block(name, dtype):
    x, w, bias, arguments = layer(name, 5, dtype)
    expected = oracle.convolution(x, w, bias, *arguments)
    on_device = [t.cuda() for t in (x, w, bias)]
    assert_same_bits(bi.convolution(*on_device, *arguments).cpu(), expected, "chosen")
    for block in ((128, 1, 4), (64, 2, 2), (128, 4, 4), (256, 8, 4)):
        found = gpu.convolution(*on_device, *arguments, tile=gpu_depthwise.Block(*block))
        assert_same_bits(found.cpu(), expected, f"{block}")


@EACH_LAYER
@EACH_DTYPE
def test_a_sample_does_not_see_the_batch(name, dtype):
    x, w, bias, arguments = on_device(name, max(SIZES), dtype)
    whole = bi.convolution(x, w, bias, *arguments)
    for size in SIZES:
        members = torch.randperm(len(x))[:size].cuda()
        assert_same_bits(bi.convolution(x[members], w, bias, *arguments), whole[members], f"{size} samples")
    for value in (torch.nan, torch.inf, 3e4):
        among = torch.full_like(x[:5], value)
        among[2] = x[0]
        assert_same_bits(bi.convolution(among, w, bias, *arguments)[2], whole[0], f"{value}")
    channels_last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    strided = torch.full((*x.shape, 2), torch.nan, dtype=dtype, device="cuda")[..., 1].copy_(x)
    for other in (channels_last, strided):
        assert_same_bits(bi.convolution(other, w, bias, *arguments), whole, f"{other.stride()}")


def test_control_stock_samples_see_the_batch():
    differ = 0
    for name in LAYERS:
        for dtype in (BF16, FP32):
            x, w, bias, arguments = on_device(name, 33, dtype)
            whole = torch.convolution(x, w, bias, *arguments)
            found = [same_bits(torch.convolution(x[:n], w, bias, *arguments), whole[:n]) for n in SIZES]
            differ += not all(found)
    assert differ > 0


@EACH_LAYER
@EACH_DTYPE
def test_as_near_to_the_truth_as_stock(name, dtype):
    x, w, bias, arguments = on_device(name, 3, dtype)
    x, w, bias = (torch.randn_like(t) for t in (x, w, bias))
    truth = torch.convolution(*(t.double().cpu() for t in (x, w, bias)), *arguments)

    def error(found: torch.Tensor) -> float:
        return float((found.double().cpu() - truth).square().mean().sqrt() / truth.square().mean().sqrt())

    ours = error(bi.convolution(x, w, bias, *arguments))
    stock = error(torch.convolution(x, w, bias, *arguments))
    # In fp64 the CPU's stock is the truth itself.
    assert ours <= 1.5 * stock + torch.finfo(dtype).eps * (16 if dtype == FP64 else 1)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(32)
        self.depthwise = torch.nn.Conv2d(32, 32, 5, padding=2, groups=32)
        self.up = torch.nn.ConvTranspose2d(32, 4, 4, stride=2, padding=1)

    def forward(self, x):
        x = F.silu(self.norm(self.first(x)))
        return self.up(self.depthwise(x) + x)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_a_compiled_net(dtype):
    torch.compiler.reset()
    net = Net().cuda().to(dtype).eval()
    x = torch.randn(16, 3, 32, 32, dtype=dtype, device="cuda")
    compiled = torch.compile(net, backend="batch_invariant")
    whole = compiled(x)
    for size in (1, 2, 7):
        assert_same_bits(compiled(x[3 : 3 + size]), whole[3 : 3 + size], f"{size}")
    with bi_compile.eager():
        assert_same_bits(net(x), whole, "eager")
    alone, among = (t.clone().requires_grad_() for t in (x[3:4], x))
    for inputs in (alone, among):
        compiled(inputs).float().square().sum(dim=(1, 2, 3)).backward(torch.ones(len(inputs), device="cuda"))
    assert_same_bits(alone.grad[0], among.grad[3], "gradient")
