"""Complex numbers are computed part by part; compiled graphs, eager mode and every batch agree."""

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.lowering import lowerings

import bi_compile
from bi_compile.analysis.order import EXACT_POINTWISE, base_name
from bi_compile.inductor import stock_decompositions
from bi_compile.pipeline import canonical
from bi_compile.report import collect
from tests.bits import assert_same_bits
from tests.passes.tables import op_names, traced

Z = torch.randn(5, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
W = torch.randn(5, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
R = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
CALLS = {
    "product": (torch.mul, (Z, W)),
    "product with a real tensor": (torch.mul, (Z, R)),
    "product with a number": (lambda z: z * 3 * (1 - 2j) * 1j, (Z,)),
    "real times complex number": (lambda r: r * (0.5 + 2j), (R,)),
    "quotient": (torch.div, (Z, W)),
    "quotient of a real tensor": (torch.div, (R, W)),
    "quotient by a number": (lambda z: z / 3, (Z,)),
    "sum of two": (lambda z, w: torch.add(z, w, alpha=2) + 1 + 2j, (Z, W)),
    "sum with a real tensor": (lambda z, r: z + r, (Z, R)),
    "difference": (lambda z, w: z - w - 1, (Z, W)),
    "negative and conjugate": (lambda z: -z.conj(), (Z,)),
    "magnitude": (torch.abs, (Z,)),
    "parts": (lambda z: z.real * z.imag, (Z,)),
    "exponential": (torch.exp, (Z,)),
    "reciprocal": (torch.reciprocal, (Z,)),
    "square": (torch.square, (Z,)),
    "sign": (lambda z: z.sgn() + torch.zeros_like(z).sgn(), (Z,)),
    "polar": (torch.polar, (R.abs(), R)),
    "from parts": (torch.complex, (R, R + 1)),
    "from real": (lambda r: r.to(torch.complex64) * 1j, (R,)),
    "sum and mean of a row": (lambda z: z.sum(-1) + z.mean(-1), (Z,)),
    "matrix product": (lambda z, w: z @ w.mT, (Z, W)),
    "rotary embedding": (
        lambda r: torch.view_as_real(
            torch.view_as_complex(r.reshape(5, 3, 2)) * torch.polar(torch.ones(3), torch.arange(3.0))
        ).flatten(1),
        (R,),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_is_computed_by_parts_close_to_float64(name):
    fn, inputs = CALLS[name]
    graph = traced(fn, *inputs)
    with bi_compile.eager():
        got = fn(*inputs)
        assert_same_bits(torch.view_as_real(got) if got.is_complex() else got, _real(graph(*inputs)))
    wide = [x.to(torch.complex128) if x.is_complex() else x.double() for x in inputs]
    torch.testing.assert_close(got.to(fn(*wide).dtype), fn(*wide), rtol=2e-6, atol=2e-6, check_dtype=False)
    left = {"aten.mul.Tensor", "aten.add.Tensor", "aten._conj", "aten.mm", "aten.polar", "aten.sgn"}
    for node in graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_complex():
            assert str(node.target).removesuffix(".default") not in left, op_names(graph)


def _real(x):
    return torch.view_as_real(x) if x.is_complex() else x


V = torch.randn(40, 7, dtype=torch.complex64, generator=torch.Generator().manual_seed(3))


def rotate(x, y):
    z = torch.view_as_complex(x.reshape(x.shape[0], -1, 2)) * torch.polar(torch.ones(40), torch.arange(40.0))
    w = z / (torch.complex(y, y * 2) + 3) - z.conj() * 2
    return torch.view_as_real(w @ V).flatten(1), w.abs(), w.sum(-1).real


def test_compiled_equals_eager_in_any_batch_and_nothing_is_isolated():
    torch.compiler.reset()
    x, y = torch.randn(9, 80), torch.randn(9, 40)
    with bi_compile.eager():
        want = rotate(x, y)
    compiled = torch.compile(rotate, backend="batch_invariant")
    with collect() as report:
        for part in (slice(0, 9), slice(3, 5), slice(3, 4)):
            for got, whole in zip(compiled(x[part], y[part]), want, strict=True):
                assert_same_bits(got, whole[part])
    assert report.promised
    assert not report.isolated
    # The control: one row, which every library of products takes by other code than nine.
    assert not torch.equal(rotate(x[3:4], y[3:4])[0], rotate(x, y)[0][3:4])


def test_gradients_are_those_of_float64():
    def magnitude(x):
        z = torch.complex(x, x * 2) * torch.polar(torch.ones_like(x), x)
        return (z * z.conj()).real.sum() + z.abs().sum()

    x = torch.randn(4, 3)
    grads = []
    for dtype, mode in ((torch.float32, True), (torch.float64, False)):
        leaf = x.to(dtype).clone().requires_grad_()
        if mode:
            with bi_compile.eager():
                magnitude(leaf).backward()
        else:
            magnitude(leaf).backward()
        grads.append(leaf.grad.double())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_complex_numbers_of_half_precision_are_nobodys():
    """Their dtype is complex32, which has no arithmetic here: the call is left to the check of the graph."""
    x = torch.randn(4, 3).half()
    graph = traced(lambda x: x * 1j, x)
    assert "aten.mul.Tensor" in op_names(graph)
    assert graph.graph.output_node().args[0].meta["val"].dtype == torch.complex32


def test_exact_ops_that_inductor_lacks_are_never_left_to_it():
    """Its own decompositions of them are replaced by ours, and the check of the graph lets them through."""
    lacking = {
        op
        for op in canonical()
        if op in stock_decompositions() and op not in lowerings and base_name(op) in EXACT_POINTWISE
    }
    names = {"aten.sgn", "aten.rsub.Tensor", "aten.rsub.Scalar", "aten.softshrink", "aten.round.decimals"}
    names |= {"aten.frac"}
    assert {str(op).removesuffix(".default") for op in lacking} == names
    of_all = (torch.sgn, lambda x: torch.rsub(x, x + 1), lambda x: torch.rsub(x, 2))
    of_floats = (F.softshrink, torch.frac, lambda x: torch.round(x, decimals=1))
    for x in (R, R.bfloat16(), (R * 3).long()):
        for call in (*of_all, *(of_floats if x.is_floating_point() else ())):
            assert not op_names(traced(call, x)) & names


def test_gradients_of_magnitudes_of_real_numbers():

    def gradient(x):
        x = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(distance(x).sum(), x)
        return found

    def distance(x):
        return x.abs() + x.norm(p=1, dim=1, keepdim=True)

    with bi_compile.eager():
        want = gradient(R)
    torch.compiler.reset()
    distance = torch.compile(distance, backend="batch_invariant")
    for part in (slice(0, 5), slice(2, 3)):
        assert_same_bits(gradient(R[part]), want[part])
