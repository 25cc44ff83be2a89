"""Sorting and selecting keep equal elements in the order of their indices; stable sorts stay."""

from contextlib import nullcontext

import pytest
import torch
from torch._dispatch.python import enable_python_dispatcher

import bi_compile
from bi_compile.report import collect
from bi_compile.templates.order_statistics import oracle
from tests.bits import assert_same_bits, same_bits
from tests.passes.tables import check_left_alone, check_rewritten, op_names, traced
from tests.templates.rows import LAYOUTS

X = torch.randn(3, 5, 8)
HOLES = torch.where(X > 1, torch.nan, X)
TOPK, SORT = {"bi_compile.topk"}, {"aten.sort.stable"}

REWRITTEN = {
    "sort": (lambda x: tuple(x.sort(1)), (X,), SORT),
    "sort, not stable": (lambda x: tuple(x.sort(dim=-1, stable=False, descending=True)), (X,), SORT),
    "sort of integers": (lambda x: x.sort(1).values, (X.long(),), SORT),
    "argsort": (lambda x: x.argsort(0, descending=True), (X,), SORT),
    "msort": (torch.msort, (X,), SORT),
    "topk": (lambda x: tuple(x.topk(3)), (X,), TOPK),
    "topk, smallest, not sorted": (lambda x: x.topk(3, 1, False, False).values.sum(1), (X,), TOPK),
    "topk of integers": (lambda x: x.topk(3, 1).values, (X.long(),), TOPK),
    "kthvalue": (lambda x: tuple(x.kthvalue(2, 1, keepdim=True)), (X,), TOPK),
    "median": (torch.median, (X,), TOPK),
    "median over a dim": (lambda x: tuple(x.median(-1)), (X,), TOPK),
    "median of integers": (lambda x: x.median(1).values, (X.long(),), TOPK),
    "median with NaN": (lambda x: tuple(x.nan_to_num(2).median(1, keepdim=True)), (HOLES,), TOPK),
    "nanmedian": (torch.nanmedian, (HOLES,), SORT),
    "nanmedian over a dim": (lambda x: tuple(x.nanmedian(1, keepdim=True)), (HOLES,), SORT),
    "quantile": (lambda x: torch.quantile(x, 0.3, -1), (X,), SORT),
    "quantiles": (lambda x: torch.quantile(x, x.new_tensor([0.1, 0.9]), 1, keepdim=True), (X,), SORT),
    "nanquantile": (lambda x: torch.nanquantile(x, 0.4, 1), (X,), SORT),
}
LEFT_ALONE = {
    "stable sort": (lambda x: tuple(x.sort(dim=1, stable=True)), (X,)),
    "mode": (lambda x: x.round().mode(1).values, (X,)),
    "searchsorted": (lambda x: torch.searchsorted(x[0, 0].sort(stable=True).values, x), (X,)),
    "bucketize": (lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])), (X,)),
    "unique of integers": (lambda x: x.long().unique(), (X,)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    # Where the host asks it when it makes graphs, and quantiles are ours before torch 2.12.
    with enable_python_dispatcher() if "quantile" in name else nullcontext():
        check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    fn, inputs = LEFT_ALONE[name]
    if name == "unique of integers":  # its size depends on the data: no graph holds it
        with bi_compile.eager():
            assert torch.equal(fn(*inputs), X.long().unique())
        return
    check_left_alone(fn, inputs)


def test_no_unstable_sort_is_left_in_a_graph():
    assert "aten.sort" not in op_names(traced(lambda x: x.sort(1), X))


def rank(x):
    """Orders of every kind along dim 1."""
    top, places = x.topk(3, 1)
    median, nanmedian = x.median(1), x.nanmedian(1)
    kth, mode = x.kthvalue(4, 1), x.round().mode(1)
    ordered, order = x.sort(1, descending=True)
    quantile = torch.quantile(x, 0.37, 1)
    return top, places, *median, *nanmedian, *kth, *mode, ordered, order, quantile


def ties(count):
    x = torch.randint(-4, 5, (count, 150)) / 4
    x[:, 7] = -0.0
    x[::3, 11] = torch.nan
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_but_the_row_decides_and_values_are_those_of_eager(dtype):
    x = ties(33).to(dtype)
    with bi_compile.eager():
        want = rank(x)
        for layout in LAYOUTS.values():
            for got, whole in zip(rank(layout(x)), want, strict=True):
                assert_same_bits(got, whole)
        for start, stop in ((0, 1), (5, 8), (16, 33)):
            for got, whole in zip(rank(x[start:stop]), want, strict=True):
                assert_same_bits(got, whole[start:stop])
    for got, stock in zip(want, rank(x), strict=True):
        if got.is_floating_point():
            torch.testing.assert_close(got, stock, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("descending", [True, False])
def test_the_stable_sort_of_torch_is_stable_in_every_layout(dtype, descending):
    x = ties(9).to(dtype)
    values, order = oracle.topk(x, 150, 1, descending)
    for layout in LAYOUTS.values():
        for threads in (1, 2):
            torch.set_num_threads(threads)
            got = layout(x).sort(dim=1, descending=descending, stable=True)
            assert torch.equal(got.indices, order)
            assert same_bits(got.values, values)


def test_compiled_is_eager_forward_and_backward_for_any_batch():
    torch.compiler.reset()
    x = ties(9)
    x[:, 11] = 0.3

    def run(fn, x):
        x = x.clone().requires_grad_()
        outputs = fn(x)
        sum((o * (1 + o.detach())).sum() for o in outputs if o.is_floating_point()).backward()
        return [o.detach() for o in outputs] + [x.grad]

    with bi_compile.eager():
        want = run(rank, x)
    compiled = torch.compile(rank, backend="batch_invariant")
    with collect() as report:
        for part in (slice(0, 9), slice(4, 8)):
            for got, whole in zip(run(compiled, x[part]), want, strict=True):
                assert_same_bits(got, whole[part])
    assert report.canonical["bi_compile.topk"]
    assert not report.left_alone
