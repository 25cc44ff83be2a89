"""Products of several matrices have one order, whatever the number of rows would make the cheapest."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.exc import TorchRuntimeError
from torch._inductor.utils import fresh_cache
from torch.backends import opt_einsum

import bi_compile
from bi_compile import dynamo
from bi_compile.errors import BatchSizeWarning, LeakWarning
from bi_compile.testing import assert_batch_invariant
from tests.bits import assert_same_bits, order_sensitive, same_bits

X, A, B, C = (order_sensitive(*shape) for shape in [(33, 30), (30, 40), (40, 7), (7, 50)])
HEADS = order_sensitive(33, 6, 30)


def _multi_dot(*tensors):
    return torch.linalg.multi_dot(tensors)


# Of one row the first two are cheapest to begin with, of 33 the others.
PRODUCTS = {
    "multi_dot": (lambda x, a, b, c: torch.linalg.multi_dot([x, a, b]), X),
    "multi_dot of four": (lambda x, a, b, c: _multi_dot(x, a, b, c), X),
    "multi_dot of samples in columns": (lambda x, a, b, c: torch.linalg.multi_dot([b.T, a.T, x.T]).T, X),
    "multi_dot of a column": (lambda x, a, b, c: torch.linalg.multi_dot([x, a, b, c[:, 0]]), X),
    "chain_matmul": (lambda x, a, b, c: torch.chain_matmul(x, a, b), X),
    "einsum": (lambda x, a, b, c: torch.einsum("bi,ij,jk->bk", x, a, b), X),
    "einsum of four": (lambda x, a, b, c: torch.einsum("bi,ij,jk,kl->bl", x, a, b, c), X),
    "einsum of a list": (lambda x, a, b, c: torch.einsum("bi,ij,jk->bk", [x, a, b]), X),
    "einsum by numbers": (lambda x, a, b, c: torch.einsum(x, [0, 1], a, [1, 2], b, [2, 3], [0, 3]), X),
    "einsum of anything before": (lambda x, a, b, c: torch.einsum("...i,ij,jk->...k", x, a, b), HEADS),
    "einsum of heads": (lambda x, a, b, c: torch.einsum("bhi,ij,bgj,jk->bhgk", x, a, x @ a, b), HEADS),
}
BY_SIZE = [name for name in PRODUCTS if name != "einsum of heads"]
"""Those of which stock PyTorch changes the order within these batches."""


def of(name, dtype=torch.float32):
    weights = [w.to(dtype) for w in (A, B, C)]
    return lambda x: PRODUCTS[name][0](x, *weights)


def outside_graphs(function):
    disabled = torch.compiler.disable(function)

    def broken(x):
        return disabled(x + 0)

    return torch.compile(broken, backend="batch_invariant")


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    assert opt_einsum.is_available(), "without it torch.einsum has one order anyhow"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.chain_matmul is deprecated", UserWarning)
        yield


@pytest.mark.parametrize("name", PRODUCTS)
@torch.no_grad()
def test_any_batch_has_the_same_bits_in_graphs_and_in_eager_mode(name, recwarn):
    product, x = of(name), PRODUCTS[name][1]
    compiled = torch.compile(product, backend="batch_invariant", fullgraph=True)
    assert_batch_invariant(compiled, x, trials=1, control=product if name in BY_SIZE else None)
    with bi_compile.eager():
        assert_batch_invariant(product, x, trials=1)
        outside, alone = product(x), product(x[:1])
    assert_same_bits(outside, compiled(x))
    assert_same_bits(alone, compiled(x[:1]))
    assert not [w for w in recwarn if issubclass(w.category, BatchSizeWarning)]
    exact = of(name, torch.float64)(x.double())
    assert _error(compiled(x), exact) <= 2 * _error(product(x), exact)


def _error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", PRODUCTS)
def test_gradients_are_near_those_of_float64(name):
    product, x = of(name), PRODUCTS[name][1]
    compiled = torch.compile(product, backend="batch_invariant", fullgraph=True)
    weight = torch.randn_like(product(x))

    def gradient(of, x, weight):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(of(x), x, weight)[0]

    ours = gradient(compiled, x, weight)
    with bi_compile.eager():
        assert_same_bits(gradient(product, x, weight), ours)
    exact = gradient(of(name, torch.float64), x.double(), weight.double())
    torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-3 * ours.abs().max().item())


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name.startswith("einsum")])
@torch.no_grad()
def test_code_outside_graphs_has_the_bits_of_graphs(name):
    product, x = of(name), PRODUCTS[name][1]
    broken = outside_graphs(product)
    assert_batch_invariant(broken, x, trials=1)
    assert_same_bits(broken(x), torch.compile(product, backend="batch_invariant")(x))


@pytest.mark.parametrize("name", ["multi_dot", "chain_matmul", "multi_dot of a column"])
@torch.no_grad()
def test_outside_graphs_multi_dot_is_told(name):
    product, x = of(name), PRODUCTS[name][1]
    dynamo._warned.clear()
    with pytest.warns(LeakWarning, match="multiplies in the order that costs least"):
        outside_graphs(product)(x)


@torch.no_grad()
def test_other_products_outside_graphs_are_not():
    dynamo._warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outside_graphs(lambda x: x @ A)(X)
    assert not [w for w in caught if issubclass(w.category, LeakWarning)]


@torch.no_grad()
def test_without_opt_einsum_the_order_is_from_the_left():
    product, x = of("einsum"), X
    with opt_einsum.flags(enabled=False), bi_compile.eager():
        assert_same_bits(product(x), (x @ A) @ B)


@torch.no_grad()
def test_stock_pytorch_keeps_its_order():
    """In this thread and in others, also while this one is under the mode."""
    products = [of(name) for name in ("einsum", "multi_dot", "chain_matmul")]

    def stock():
        with torch.no_grad():
            results = [product(X) for product in products]
            return results + [torch.compile(product, backend="eager")(X) for product in products]

    before = stock()
    with ThreadPoolExecutor(1) as other, bi_compile.eager():
        beside = other.submit(stock).result()
        ours = products[0](X)
    assert not same_bits(ours, before[0]), "the control"
    for old, *new in zip(before, beside, stock(), strict=True):
        assert all(same_bits(old, result) for result in new)


@pytest.mark.parametrize("way", ["eager", "compiled"])
@torch.no_grad()
def test_the_arguments_are_those_of_stock(way):
    def run(function, *args):
        if way == "eager":
            with bi_compile.eager():
                return function(*args)
        torch.compiler.reset()
        for arg in args:
            bi_compile.mark_batch(arg, None)
        return torch.compile(function, backend="batch_invariant", fullgraph=True)(*args)

    row, column, errors = torch.randn(30), torch.randn(40), (RuntimeError, TorchRuntimeError)
    for given in ((row, A, B), (row, A, column), (X, A, column), (row, row), (X, A)):
        wide = torch.linalg.multi_dot([x.double() for x in given])
        assert run(_multi_dot, *given).shape == wide.shape
        assert _error(run(_multi_dot, *given), wide) < 1e-5
    assert_same_bits(run(torch.chain_matmul, X), X)
    out = torch.empty(0 if way == "eager" else 33, 7)  # Dynamo does not resize
    run(lambda out, *given: torch.linalg.multi_dot(given, out=out), out, X, A, B)
    assert_same_bits(out, run(_multi_dot, X, A, B))
    for wrong in ((X,), (X, HEADS, A), (X, column, A)):
        with pytest.raises(errors, match=r"multi_dot\(\)"):
            run(_multi_dot, *wrong)
    with pytest.raises(errors, match=r"chain_matmul\(\)"):
        run(torch.chain_matmul, X, column)


@torch.no_grad()
def test_caches_tell_graphs_with_opt_einsum_from_those_without():
    def product(x):
        return torch.einsum("ab,cd,bc->ad", x, B, A)  # from the left, an outer product first

    def run():
        torch.compiler.reset()
        with bi_compile.eager():
            outside = product(X)
        compiled = torch.compile(product, backend="batch_invariant")(X)
        assert_same_bits(compiled, outside)
        return compiled

    with fresh_cache():
        with_it = run()
        with opt_einsum.flags(enabled=False):
            assert not same_bits(run(), with_it), "the control"


_ALONE = """
import sys, torch, bi_compile
x, a, b = torch.randn(33, 30), torch.randn(30, 40), torch.randn(40, 7)
with torch.no_grad(), bi_compile.eager():
    whole, row = (torch.einsum("bi,ij,jk->bk", part, a, b) for part in (x, x[:1]))
assert "bi_compile.backend" not in sys.modules, "nothing to be shown"
assert torch.equal(whole[:1], row)
"""


def test_eager_mode_alone_chooses_by_the_equation():
    subprocess.run([sys.executable, "-c", _ALONE], check=True)
