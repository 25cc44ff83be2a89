"""Windows have one formula: compiled and outside graphs, close to those of stock PyTorch in fp64."""

import pytest
import torch

import bi_compile
from bi_compile.report import collect
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits
from tests.passes.tables import check_rewritten

X = torch.randn(3, 41)
WINDOWS = {
    "hamming": torch.hamming_window,
    "hamming of other heights": lambda n, **o: torch.hamming_window(n, False, 0.6, 0.4, **o),
    "hamming of another height": lambda n, **o: torch.hamming_window(n, False, 0.6, **o),
    "blackman": torch.blackman_window,
    "blackman, symmetric": lambda n, **o: torch.blackman_window(n, False, **o),
    "bartlett": torch.bartlett_window,
    "bartlett, symmetric": lambda n, **o: torch.bartlett_window(n, False, **o),
    "kaiser": torch.kaiser_window,
    "kaiser, symmetric": lambda n, **o: torch.kaiser_window(n, False, **o),
    "kaiser, narrow": lambda n, **o: torch.kaiser_window(n, True, 40.0, **o),
    "kaiser, flat": lambda n, **o: torch.kaiser_window(n, True, 0.0, **o),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_is_rewritten(name):
    check_rewritten(lambda x: x * WINDOWS[name](41), (X,), set())


@pytest.mark.parametrize("name", WINDOWS)
def test_is_as_exact_as_fp32_can_be(name):
    for length in 0, 1, 2, 3, 8, 400:
        with bi_compile.eager():
            got, wide = WINDOWS[name](length), WINDOWS[name](length, dtype=torch.float64)
            half = WINDOWS[name](length, dtype=torch.bfloat16)
        exact = WINDOWS[name](length, dtype=torch.float64)
        torch.testing.assert_close(wide, exact, rtol=1e-12, atol=1e-14)
        assert_same_bits(got, wide.float())
        assert_same_bits(half, wide.float().bfloat16())


@pytest.mark.parametrize("name", ["hamming", "blackman", "bartlett", "kaiser"])
def test_compiled_is_eager_in_any_batch(name):
    torch.compiler.reset()
    fn = lambda x: x * WINDOWS[name](41)  # noqa: E731
    with collect() as report:
        compiled = torch.compile(fn, backend="batch_invariant", fullgraph=True)
        assert_batch_invariant(compiled, X, sizes=(1, 2, 3, 8), trials=1)
    assert report.promised
    with bi_compile.eager():
        want = fn(X)
    assert_same_bits(compiled(X), want)


def test_control_stock_windows_round_otherwise():
    """In bf16 it rounds after every step."""
    stock = [WINDOWS[name](400, dtype=torch.bfloat16) for name in WINDOWS]
    with bi_compile.eager():
        ours = [WINDOWS[name](400, dtype=torch.bfloat16) for name in WINDOWS]
    assert any(not torch.equal(a, b) for a, b in zip(ours, stock, strict=True))
