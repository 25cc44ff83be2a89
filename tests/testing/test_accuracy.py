"""The reference in float64: what is compared with it, in whatever form it comes, and what is not excused."""

import pytest
import torch

from bi_compile.testing import InaccurateResultError, assert_batch_invariant

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
