"""Convolutional networks against stock Inductor: interleaved runs in one process, one ratio a line.

    python benchmarks/convolution.py [--models resnet50] [--batches 1 8] [--threads 1 2] [--layers]

A ratio above 1 means that ours is slower. Whole networks (random weights, 224 pixels, evaluation mode, fp32)
are compiled by both backends; `--layers` times every different convolution of a network alone, stock in the
faster of its two layouts. Calls alternate and the best of each count: other work on the machine only slows
them down. With one thread the processor time of the process is measured, with more the time on the wall.
"""

import argparse
import datetime
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import bi_compile.templates.convolution  # noqa: F401  (defines the op)

Call = Callable[[], torch.Tensor]


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *_layer(inputs, width, 1),
            nn.ReLU(),
            *_layer(width, width, 3, stride),
            nn.ReLU(),
            *_layer(width, outputs, 1),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*_layer(inputs, outputs, 1, stride)) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [*_layer(inputs, width, 1), nn.ReLU6()] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand, *_layer(width, width, 3, stride, groups=width), nn.ReLU6(), *_layer(width, outputs, 1)
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def resnet50() -> nn.Module:
    """The shapes of ResNet-50 (He et al. 2015) with the stride in the 3x3 layer."""
    layers = [*_layer(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def mobilenet_v2() -> nn.Module:
    """The shapes of MobileNet-v2 (Sandler et al. 2018)."""
    layers = [*_layer(3, 32, 3, 2), nn.ReLU6()]
    inputs = 32
    table = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, outputs, blocks, stride in table:
        for block in range(blocks):
            layers.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
            inputs = outputs
    head = [
        *_layer(inputs, 1280, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    ]
    return nn.Sequential(*layers, *head)


MODELS = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2}


def seconds(call: Call) -> float:
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def best(calls: list[Call], budget: float) -> list[float]:
    """Best times of calls taken in turn for `budget` seconds."""
    for call in calls:
        call()
    times = []
    start = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - start < budget:
        times.append([seconds(call) for call in calls])
    return [min(column) for column in zip(*times, strict=True)]


def network(name: str, batch: int, budget: float) -> str:
    torch.compiler.reset()
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    x = torch.randn(batch, 3, 224, 224)
    stock = torch.compile(model, dynamic=False)
    ours = torch.compile(model, backend="batch_invariant", dynamic=False)
    stock_time, our_time = best([lambda: stock(x), lambda: ours(x)], budget)
    return f"{stock_time * 1e3:8.2f} ms stock  {our_time * 1e3:8.2f} ms ours  {our_time / stock_time:5.2f}"


def convolutions(name: str, batch: int) -> dict[str, tuple[nn.Conv2d, tuple[int, ...], int]]:
    """Every different convolution of a network: the layer, the shape of its input and how often it occurs."""
    found: dict[str, tuple[nn.Conv2d, tuple[int, ...], int]] = {}

    def note(layer: nn.Conv2d, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        shape = tuple(inputs[0].shape)
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        kind = "depthwise" if layer.groups > 1 else f"-> {layer.out_channels:4}"
        label = f"{shape[1]:4} x {shape[2]:3} {kind:9} {kernel}x{kernel} /{stride}"
        found[label] = (layer, shape, found[label][2] + 1 if label in found else 1)

    model = MODELS[name]().eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    model(torch.randn(batch, 3, 224, 224))
    return found


def layers(name: str, batch: int, budget: float) -> None:
    total = [0.0, 0.0]
    for label, (layer, shape, count) in convolutions(name, batch).items():
        x, w = torch.randn(shape), layer.weight
        x_last, w_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        rest = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
        *stock, ours = best(
            [
                lambda x=x, w=w, rest=rest: torch.convolution(x, w, None, *rest),
                lambda x=x_last, w=w_last, rest=rest: torch.convolution(x, w, None, *rest),
                lambda x=x, w=w, rest=rest: torch.ops.bi_compile.convolution(x, w, None, *rest),
            ],
            budget,
        )
        total[0] += count * min(stock)
        total[1] += count * ours
        flops = 2 * shape[0] * w.numel() * (shape[2] // layer.stride[0]) * (shape[3] // layer.stride[1])
        print(
            f"    {label}  x{count}  {min(stock) * 1e6:9.1f} us stock  {ours * 1e6:9.1f} us ours  "
            f"{flops / ours / 1e9:6.1f} Gflop/s  {ours / min(stock):5.2f}",
            flush=True,
        )
    stock_total, our_total = total[0] * 1e3, total[1] * 1e3
    print(f"    all: {stock_total:.2f} ms stock  {our_total:.2f} ms ours  {our_total / stock_total:.2f}")


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return f"{cpu}, torch {torch.__version__}, {datetime.date.today().isoformat()}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--layers", action="store_true", help="every convolution alone")
    parser.add_argument("--budget", type=float, help="seconds of measuring a line")
    options = parser.parse_args()

    print(machine(), flush=True)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.models:
            for batch in options.batches:
                heading = f"{name:13} batch {batch}, {threads} threads"
                if options.layers:
                    print(heading, flush=True)
                    layers(name, batch, options.budget or 0.3)
                else:
                    print(f"{heading}  {network(name, batch, options.budget or 5.0)}", flush=True)


if __name__ == "__main__":
    main()
