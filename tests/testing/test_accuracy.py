"""The reference in float64: what is compared with it, in whatever form it comes, and what is not excused."""

import copy

import pytest
import torch
from torch import nn

from bi_compile.testing import InaccurateResultError, assert_batch_invariant
from bi_compile.testing.in_double import in_double
from tests.bits import assert_same_bits

CONTAINERS = {
    "a mapping": lambda y: {"logits": y},
    "a tuple": lambda y: (y,),
    "nested": lambda y: {"outputs": [y]},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_reference_with_another_container_is_compared_all_the_same(name, samples):
    """So is a control; either may be the one whose outputs come in another form."""
    wrap, x = CONTAINERS[name], samples / 1024

    def wrapped(x):
        return wrap(x * 2)

    for fn, reference, control in (
        (lambda x: x * 2, wrapped, None),
        (wrapped, lambda x: x * 2, None),
        (lambda x: x * 2, lambda x: x * 2, lambda x: wrap(x * 2 + x.mean(0) * 1e-7)),
    ):
        report = assert_batch_invariant(fn, x, reference=reference, control=control)
        assert report.accuracy is not None
        assert list(report.accuracy.errors.values()) == [0.0]
    for fn, reference in ((lambda x: x * 6 + 7, wrapped), (lambda x: wrap(x * 6 + 7), lambda x: x * 2)):
        with pytest.raises(InaccurateResultError, match="farther from the float64 reference"):
            assert_batch_invariant(fn, x, reference=reference)


def test_outputs_that_cannot_be_matched_are_told(samples):
    def two(x):
        return {"a": x * 2, "b": x * 3}

    message = r"fn returns output \[1, 301\], the reference returns output\['a'\] \[1, 301\], output\['b'\]"
    with pytest.raises(ValueError, match=message):
        assert_batch_invariant(lambda x: x * 2, samples, reference=two)
    message = r"fn returns output\['a'\] \[1, 301\], output\['b'\] \[1, 301\], the control returns output "
    with pytest.raises(ValueError, match=message):
        assert_batch_invariant(two, samples, reference=two, control=lambda x: x + x.mean(0))
    with pytest.raises(ValueError, match=r"reference has shape \(1, 301\), of stock \(1, 300\)"):
        assert_batch_invariant(
            lambda x: x * 2, samples, reference=lambda x: x * 2, control=lambda x: (x + x.mean(0))[:, 1:]
        )
    with pytest.raises(ValueError, match=r"fn returns output for sample 1, but output\['a'\], output\['b'\]"):
        assert_batch_invariant(lambda x: two(x) if torch.equal(x[0], samples[0]) else x, samples)


def test_what_stock_gets_wrong_excuses_nothing_else(samples):
    """Where stock overflows and the reference does not, ours may; everywhere else it is compared."""
    x = samples.clone() / 1024
    x[:, 0] = 200.0

    def overflows(x):
        return x.where(x < 100, x * 3e38 * 3e38) * 2

    assert_batch_invariant(
        overflows, x, reference=lambda x: x * 2, control=lambda x: overflows(x) + x.mean(0)
    )
    with pytest.raises(InaccurateResultError):
        assert_batch_invariant(lambda x: overflows(x) * 3 + 7, x, reference=overflows_in_fp32(overflows))


def overflows_in_fp32(fn):
    return lambda x: fn(x) if x.dtype == torch.float32 else x * 2


def test_complex_outputs_are_compared_with_the_reference(samples):
    def turned(x):
        return torch.complex(x, 2 * x)

    report = assert_batch_invariant(turned, samples, reference=turned)
    assert report.accuracy is not None
    assert report.accuracy.errors == {"output": 0.0}
    with pytest.raises(InaccurateResultError):
        assert_batch_invariant(lambda x: torch.complex(x, 3 * x), samples, reference=turned)


class Norm(nn.Module):
    """As transformers writes it: the sum in fp32, whatever the dtype of the model."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(300))

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def _exact_norm(x):
    return NORM.weight.double() * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


NORM = Norm()
STEPS = torch.arange(300).double()
# What asks for fp32, and the same of float64 inputs without.
ASKING_FOR_FP32 = {
    "float": (lambda x: x.float() / 3, lambda x: x / 3),
    "to": (lambda x: x.to(torch.float32) / 3, lambda x: x / 3),
    "to, by name": (lambda x: x.to(dtype=torch.float32) / 3, lambda x: x / 3),
    "an argument": (lambda x: (x / 3).softmax(-1, dtype=torch.float32), lambda x: (x / 3).softmax(-1)),
    "the default": (lambda x: x * (torch.arange(300) / 7), lambda x: x * (STEPS / 7)),
    "of integers": (lambda x: x * (torch.arange(300).float() / 7).sin(), lambda x: x * (STEPS / 7).sin()),
    "a module": (NORM, _exact_norm),
}


@pytest.mark.parametrize("name", ASKING_FOR_FP32)
def test_the_reference_is_in_float64_where_its_code_asks_for_fp32(name):
    x, (function, written_out) = torch.randn(4, 300), ASKING_FOR_FP32[name]
    fine = {"rtol": 1e-13, "atol": 1e-15}
    cast = copy.deepcopy(function).double() if isinstance(function, nn.Module) else function
    with torch.no_grad():
        exact = written_out(x.double())
        torch.testing.assert_close(in_double(function)(x), exact, **fine)
        with pytest.raises(AssertionError):  # the control: inputs and weights alone in float64
            torch.testing.assert_close(cast(x.double()).double(), exact, **fine)
    assert torch.get_default_dtype() == torch.float32


def test_what_runs_in_fp32_alone_keeps_its_casts():
    def narrow(x):
        x = x.to(torch.float32)
        if x.dtype != torch.float32:
            raise TypeError("a kernel for fp32")
        return x / 3

    x = torch.randn(5)
    with pytest.warns(UserWarning, match="a kernel for fp32"):
        found = in_double(narrow)(x)
    assert_same_bits(found, narrow(x.double()))
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(KeyError):
        in_double(lambda x: {}[x])(x)
    assert torch.get_default_dtype() == torch.float32


def test_casts_of_the_reference_accuse_nobody():
    """A norm that rounds but once differs from stock's, and is nearer to the truth."""
    model, x = Norm(), torch.randn(6, 300)

    @torch.no_grad()
    def once_rounded(x):
        wide = x.double()
        return (model.weight * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).float()

    report = assert_batch_invariant(once_rounded, x, trials=1, reference=model)
    errors, stock = report.accuracy.errors, report.accuracy.stock_errors
    assert 0 < sum(errors.values()) < 0.7 * sum(stock.values())
