"""Convolutions and their gradients become one canonical op and contractions; integers are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bi_compile
from bi_compile.errors import UnsupportedOpError
from bi_compile.report import collect
from tests.bits import assert_same_bits, order_sensitive
from tests.passes.tables import check_left_alone, check_rewritten, op_names, traced

X, W, B = torch.randn(2, 6, 9, 8), torch.randn(4, 3, 3, 2), torch.randn(4)
X1, W1 = torch.randn(2, 6, 9), torch.randn(4, 6, 3)
X3, W3 = torch.randn(2, 4, 5, 6, 4), torch.randn(6, 2, 2, 3, 1)
OP = {"bi_compile.convolution"}

REWRITTEN = {
    "1d": (lambda x, w: F.conv1d(x, w, stride=2, padding=1), (X1, W1), OP),
    "2d with groups": (lambda x, w, b: F.conv2d(x, w, b, (2, 1), 1, 2, 2), (X, W, B), OP),
    "3d": (lambda x, w: F.conv3d(x, w, padding=(1, 0, 0), groups=2), (X3, W3), OP),
    "padding same": (lambda x, w: F.conv2d(x, w, padding="same", groups=2), (X, W), OP),
    "without a batch": (lambda x, w: F.conv2d(x[0], w, groups=2), (X, W), OP),
    "transposed": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, (2, 3), 1, (1, 2), 2),
        (X, torch.randn(6, 2, 3, 3), B),
        OP,
    ),
    "one stride for all dims": (
        lambda x, w: torch.convolution(x, w, None, [2], [1], [1], False, [0], 2),
        (X, W),
        OP,
    ),
}
LEFT_ALONE = {"padding alone": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), (X,))}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
def test_modes_of_padding(mode):
    layer = nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode).eval().requires_grad_(False)
    with bi_compile.eager():
        padded = F.pad(X, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
        assert_same_bits(layer(X), F.conv2d(padded, layer.weight, layer.bias), mode)


def test_integers_are_refused_by_name():
    with pytest.raises(UnsupportedOpError, match=r"aten\.convolution"), bi_compile.eager():
        F.conv2d(X.long(), W.long(), groups=2)


GRADIENTS = {
    "1d": ({"stride": 2, "padding": 1}, (X1, W1, torch.randn(4))),
    "2d with groups": ({"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}, (X, W, B)),
    "depthwise": ({"padding": 1, "groups": 6}, (X, torch.randn(6, 1, 3, 3), torch.randn(6))),
    "3d": ({"stride": (2, 2, 1), "padding": (1, 0, 0), "groups": 2}, (X3, W3, torch.randn(6))),
    "transposed": (
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 2},
        (X, torch.randn(6, 2, 3, 3), B),
    ),
    "transposed, more windows than elements": (
        {"output_padding": 2, "dilation": 3},
        (X, torch.randn(6, 2, 2, 2), torch.randn(2)),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    """The forward and the gradients of a traced training graph: eager bits, and close to float64."""
    options, inputs = GRADIENTS[name]
    functions = {3: (F.conv1d, None), 4: (F.conv2d, F.conv_transpose2d), 5: (F.conv3d, None)}
    convolution = functions[inputs[0].dim()]["transposed" in name]

    def training(*inputs):
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = convolution(*leaves, **options)
        return out.detach(), *torch.autograd.grad(out.square().sum(), leaves)

    exact = training(*(t.double() for t in inputs))
    graph = traced(training, *inputs)
    assert {"bi_compile.convolution", "bi_compile.bmm", "bi_compile.sum"} <= op_names(graph)
    with bi_compile.eager():
        found = training(*inputs)
        inference = convolution(*inputs, **options)
    assert_same_bits(found[0], inference, "training and inference graph")
    for got, want, truth in zip(found, graph(*inputs), exact, strict=True):
        assert_same_bits(got, want, "eager and traced")
        torch.testing.assert_close(got.double(), truth, rtol=1e-4, atol=1e-4)


def test_a_gradient_of_the_input_does_not_see_the_batch():
    w = order_sensitive(6, 6, 3, 3)
    x, grad = order_sensitive(7, 6, 9, 8), order_sensitive(7, 6, 9, 8)

    def gradient(x, grad):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(F.conv2d(x, w, padding=1), x, grad)[0]

    with bi_compile.eager():
        whole = gradient(x, grad)
        for i in range(7):
            assert_same_bits(gradient(x[i : i + 1], grad[i : i + 1]), whole[i : i + 1], f"sample {i}")


@torch.no_grad()
@pytest.mark.parametrize("freezing", [False, True])
def test_no_pass_of_the_host_fuses_folds_or_repacks_it(freezing):
    """Stock Inductor folds batch norm into frozen weights, fuses relu and prefers its own layout."""
    torch.compiler.reset()
    layers = [
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 4, 2, 2),
    ]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    for buffer in (layers[1].running_mean, layers[1].running_var):
        buffer.uniform_(0.5, 2)
    x = torch.randn(3, 3, 17, 15)
    compiled = torch.compile(model, backend="batch_invariant", options={"freezing": freezing})
    with collect() as found:
        out = compiled(x)
    assert sum(v.op == "bi_compile.convolution" for v in found.verdicts) == 3
    with bi_compile.eager():
        assert_same_bits(out, model(x), "eager")
    last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, last)
    assert_same_bits(compiled(x.to(memory_format=torch.channels_last)), out, "channels last")
