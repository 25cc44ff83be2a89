"""Convolutions: one order of summation for every batch, layout, thread count and instruction set."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_compile.errors import UnsupportedDtypeError
from bi_compile.templates import convolution as _convolution  # noqa: F401  (defines the op)
from bi_compile.templates.convolution import oracle
from tests.bits import assert_same_bits, order_sensitive, same_bits
from tests.templates import convolution_digest
from tests.templates.convolution_layers import LAYERS, layer

convolution = torch.ops.bi_compile.convolution
DTYPES = convolution_digest.DTYPES
SIZES = (1, 2, 3, 4, 7, 8, 16, 33)

GOLDEN = {
    torch.float32: "9fa02903b59a4686",
    torch.float64: "c2e8fbe55bdc0dd8",
    torch.float16: "5430b1ad19668f03",
    torch.bfloat16: "c143959e27e8c140",
}
"""Bits that users rely on: a change here needs a CHANGELOG entry."""

every_layer = pytest.mark.parametrize("name", LAYERS)


# The tree


@every_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_oracle(name, dtype):
    x, w, bias, arguments = layer(name, 2, dtype)
    assert_same_bits(convolution(x, w, bias, *arguments), oracle.convolution(x, w, bias, *arguments), name)


@settings(max_examples=15)
@given(
    st.sampled_from(DTYPES),
    st.booleans(),
    st.sampled_from([(1, 2, 30), (1, 40, 5), (3, 1, 1), (2, 3, 4), (7, 1, 2), (1, 1, 1)]),
    st.tuples(st.integers(3, 21), st.integers(4, 37)),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 2)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_any_geometry_equals_the_oracle(dtype, transposed, channels, size, kernel, stride, padding, dilation):
    groups, inputs, outputs = channels
    generator = torch.Generator().manual_seed(sum(size))
    size = tuple(max(n, d * (k - 1) + 1) + 2 for n, k, d in zip(size, kernel, dilation, strict=True))
    if transposed:
        # Padding takes outputs away on both sides.
        size = tuple(max(n, 2 * p + 1) for n, p in zip(size, padding, strict=True))
    shape = (groups * inputs, outputs, *kernel) if transposed else (groups * outputs, inputs, *kernel)
    x = order_sensitive(2, groups * inputs, *size, dtype=dtype, generator=generator)
    w = order_sensitive(*shape, dtype=dtype, generator=generator)
    extra = tuple(s - 1 for s in stride) if transposed else (0, 0)
    arguments = (stride, padding, dilation, transposed, extra, groups)
    expected = oracle.convolution(x, w, None, *arguments)
    assert_same_bits(convolution(x, w, None, *arguments), expected, f"{arguments}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_bits(dtype):
    assert convolution_digest.digest(dtype) == GOLDEN[dtype]


def test_the_portable_kernels_have_the_same_bits():
    run = subprocess.run(
        [sys.executable, "-m", "tests.templates.convolution_digest"],
        env={**os.environ, "BI_COMPILE_ISA": "portable"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == [f"{dtype} {value}" for dtype, value in GOLDEN.items()]


# Invariance


@every_layer
def test_a_sample_does_not_see_the_batch(name):
    x, w, bias, arguments = layer(name, max(SIZES))
    whole = convolution(x, w, bias, *arguments)
    generator = torch.Generator().manual_seed(1)
    for size in SIZES:
        members = torch.randperm(len(x), generator=generator)[:size]
        assert_same_bits(convolution(x[members], w, bias, *arguments), whole[members], f"{size} samples")


def test_control_stock_samples_see_the_batch():
    differ = 0
    for name in LAYERS:
        x, w, bias, arguments = layer(name, 33)
        whole = torch.convolution(x, w, bias, *arguments)
        differ += any(
            not same_bits(torch.convolution(x[:n], w, bias, *arguments), whole[:n]) for n in (1, 2, 3, 7, 16)
        )
    assert differ > 0


@every_layer
def test_neighbours_do_not_leak(name):
    x, w, bias, arguments = layer(name, 5)
    clean = convolution(x, w, bias, *arguments)
    for bad in (torch.nan, torch.inf, 3e38):
        dirty = x.clone()
        dirty[[0, 3]] = bad
        assert_same_bits(convolution(dirty, w, bias, *arguments)[[1, 2, 4]], clean[[1, 2, 4]], f"{bad}")


@every_layer
def test_threads_and_layouts_do_not_show(name):
    x, w, bias, arguments = layer(name, 3)
    expected = convolution(x, w, bias, *arguments)
    torch.set_num_threads(2)
    assert_same_bits(convolution(x, w, bias, *arguments), expected, "two threads")
    strided = torch.full((*x.shape, 2), torch.nan)[..., 1].copy_(x)
    layouts = [x.movedim(1, -1).contiguous().movedim(-1, 1), x.mT.contiguous().mT, strided]
    weights = [w.movedim(1, -1).contiguous().movedim(-1, 1), w.transpose(0, 1).contiguous().transpose(0, 1)]
    for other in layouts:
        found = convolution(other, w, bias, *arguments)
        assert_same_bits(found, expected, f"{other.stride()}")
        assert found.is_contiguous()
    for other in weights:
        assert_same_bits(convolution(x, other, bias, *arguments), expected, f"weight {other.stride()}")
    row = x[:1].expand(3, *x.shape[1:])
    assert_same_bits(convolution(row, w, bias, *arguments), expected[:1].expand_as(expected), "expanded")


def test_images_of_every_size_in_large_batches():
    """Batches of so many elements that they are taken in parts."""
    x, w = order_sensitive(40, 33, 40, 41), order_sensitive(8, 33, 3, 3)
    arguments = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    whole = convolution(x, w, None, *arguments)
    for i in (0, 17, 39):
        assert_same_bits(convolution(x[i : i + 1], w, None, *arguments), whole[i : i + 1], f"sample {i}")


# Values


@every_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_near_to_the_truth_as_stock(name, dtype):
    x, w, bias, arguments = layer(name, 3, dtype)
    x, w, bias = (torch.randn_like(t) for t in (x, w, bias))
    truth = torch.convolution(x.double(), w.double(), bias.double(), *arguments)

    def error(found: torch.Tensor) -> float:
        return float((found.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt())

    ours = error(convolution(x, w, bias, *arguments))
    stock = error(torch.convolution(x, w, bias, *arguments))
    # In fp64 stock is the truth itself.
    assert ours <= 1.5 * stock + torch.finfo(dtype).eps * (16 if dtype == torch.float64 else 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_padding_is_zeros_multiplied_like_others(dtype, groups):
    x, w = torch.randn(2, 4, 6, 7).to(dtype), torch.randn(4, 4 // groups, 3, 3).to(dtype)
    w[1, 0, 0, 0] = torch.inf
    w[2, 0, 2, 1] = torch.nan
    padded = convolution(x, w, None, (1, 1), (1, 2), (1, 1), False, (0, 0), groups)
    before = convolution(F.pad(x, (2, 2, 1, 1)), w, None, (1, 1), (0, 0), (1, 1), False, (0, 0), groups)
    assert_same_bits(padded, before, "padded before")
    assert padded[:, 1, 0].isnan().all()
    assert padded[:, 2].isnan().all()
    assert padded[:, [0, 3]].isfinite().all()


def test_gaps_of_a_transposed_convolution_are_not_multiplied():
    x, w = torch.randn(1, 1, 3, 3), torch.full((1, 1, 2, 2), torch.inf)
    w[0, 0, 0, 0] = 1
    found = convolution(x, w, None, (2, 2), (0, 0), (1, 1), True, (0, 0), 1)
    assert_same_bits(found[:, :, ::2, ::2], x, "the tap that meets")
    assert found[:, :, 1::2].isinf().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_has_one_form(dtype):
    integers = {4: torch.int32, 8: torch.int64, 2: torch.int16}[dtype.itemsize]
    x, w = torch.ones(1, 3, 4, 5, dtype=dtype), torch.ones(2, 3, 1, 1, dtype=dtype)
    x.view(integers)[0, 1, 2, 3] = -1
    found = convolution(x, w, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    patterns = found.view(integers)[found.isnan()]
    assert (patterns == torch.tensor([torch.nan], dtype=dtype).view(integers)).all()
    assert len(patterns) == 2


def test_flush_denormal_of_the_caller_does_not_show():
    for name in ("3x3", "depthwise"):
        x, w, bias, arguments = layer(name, 2)
        x, w, bias = x * 2.0**-70, w * 2.0**-70, bias * 2.0**-140
        expected = convolution(x, w, bias, *arguments)
        torch.set_flush_denormal(True)
        try:
            assert_same_bits(convolution(x, w, bias, *arguments), expected, "flushed")
        finally:
            torch.set_flush_denormal(False)


def test_zero_sizes():
    plain = ((1, 1), (0, 0), (1, 1), False, (0, 0), 1)
    assert convolution(torch.empty(0, 3, 5, 5), torch.empty(4, 3, 3, 3), None, *plain).shape == (0, 4, 3, 3)
    assert convolution(torch.empty(2, 3, 5, 5), torch.empty(0, 3, 3, 3), None, *plain).shape == (2, 0, 3, 3)
    bias = torch.randn(4)
    found = convolution(torch.empty(2, 0, 5, 5), torch.empty(4, 0, 3, 3), bias, *plain)
    assert_same_bits(found, bias.reshape(1, 4, 1, 1).expand(2, 4, 3, 3).contiguous(), "bias alone")


# Tracing, errors


def test_fake_tensors_have_the_shapes_of_real_ones():
    for name in LAYERS:
        x, w, bias, arguments = layer(name, 2)
        torch.library.opcheck(convolution.default, (x, w, bias, *arguments), test_utils="test_faketensor")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_dtypes_are_refused_by_name(dtype, device):
    x = torch.zeros(2, 2, 3, dtype=dtype, device=device)
    error = UnsupportedDtypeError if device == "meta" else RuntimeError
    with pytest.raises(error, match="convolution does not support"):
        convolution(x, x, None, (1,), (0,), (1,), False, (0,), 1)


def test_arguments_that_do_not_fit_are_refused():
    x, w = torch.randn(2, 4, 5), torch.randn(3, 2, 3)
    plain = ((1,), (0,), (1,), False, (0,), 1)
    for device in ("cpu", "meta"):
        with pytest.raises(RuntimeError, match=r"do not fit with groups=1"):
            convolution(x.to(device), w.to(device), None, *plain)
        with pytest.raises(RuntimeError, match="one dtype"):
            convolution(x.to(device), torch.randn(3, 4, 3, device=device).double(), None, *plain)
        with pytest.raises(RuntimeError, match="3 to 5 dimensions"):
            convolution(x[0].to(device), w[0].to(device), None, *plain)
        with pytest.raises(RuntimeError, match="smaller than the kernel"):
            convolution(x.to(device), torch.randn(3, 4, 6, device=device), None, *plain)
