"""Scans, reductions by index and sorting on a CUDA device: the oracle's bits, in any batch."""

import numpy
import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.templates import order_statistics, scan, scatter
from bi_compile.templates.order_statistics import oracle as order_oracle
from bi_compile.templates.order_statistics.contract import DTYPES as ORDERED
from bi_compile.templates.pointwise import contract as pointwise
from bi_compile.templates.scan import oracle as scan_oracle
from bi_compile.templates.scatter import oracle as scatter_oracle
from bi_compile.templates.scatter.contract import REDUCTIONS
from tests.bits import as_integers, assert_same_bits, order_sensitive, same_bits
from tests.templates.rows import DTYPES, NEIGHBOURS, data, sample
from tests.templates.test_order_statistics import sample as with_ties
from tests.templates.test_scatter import INDICES, forms_of_index

EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def device_function(name: str):
    """A function as the device computes it, for an oracle on the CPU."""
    return lambda x: pointwise.unary(x.cuda(), name).cpu()


SCANS = {
    "cumsum": (scan.cumsum, scan_oracle.cumsum),
    "cumprod": (scan.cumprod, scan_oracle.cumprod),
    "logcumsumexp": (
        scan.logcumsumexp,
        lambda x, dim: scan_oracle.logcumsumexp(x, dim, device_function("exp"), device_function("log1p")),
    ),
}


@EACH_DTYPE
@pytest.mark.parametrize("name", sorted(SCANS))
def test_scans_are_the_oracle(name, dtype):
    op, by_hand = SCANS[name]
    for shape, dim in (((3, 300), 1), ((300, 37), 0), ((2, 33, 5), 1), ((), 0)):
        x = sample(name, *shape, dtype=dtype, specials=True)
        assert_same_bits(op(x.cuda(), dim).cpu(), by_hand(x, dim), f"{name} of {shape} over {dim}")
        strided = x.cuda().repeat_interleave(2, -1)[..., ::2] if shape else x.cuda()
        assert_same_bits(op(strided, dim).cpu(), by_hand(x, dim), f"{name} of {shape}, strided")


def test_a_line_is_the_same_alone_and_among_any_neighbours():
    lines = data(4, 1500, dtype=torch.float32).cuda()
    alone = [scan.cumsum(lines[i : i + 1], 1)[0] for i in range(4)]
    for size in (2, 7, 33, 300):
        for value in NEIGHBOURS:
            x = torch.full((size, 1500), value, device="cuda")
            x[size // 2] = lines[size % 4]
            assert_same_bits(scan.cumsum(x, 1)[size // 2], alone[size % 4])
            assert_same_bits(scan.cumsum(x.t(), 0)[:, size // 2].contiguous(), alone[size % 4])
    exact = lines.double().cumsum(1)
    assert (torch.stack(alone) - exact).abs().max() < 1e-3 * lines.abs().sum(1).max()


@EACH_DTYPE
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_reductions_by_index_are_the_oracle(reduce, dtype):
    for include_self in (True, False):
        for dim in (0, 1, 2):
            src = sample(reduce, 3, 17, 6, dtype=dtype, specials=True)
            shape = [3, 17, 6]
            shape[dim] = 5
            x = sample(reduce, *shape, dtype=dtype, specials=True)
            for index in forms_of_index((3, 17, 6), dim, 5):
                expected = scatter_oracle.scatter_reduce(x, dim, index, src, reduce, include_self)
                found = scatter.scatter_reduce(x.cuda(), dim, index.cuda(), src.cuda(), reduce, include_self)
                assert_same_bits(found.cpu(), expected, f"{reduce} over {dim}")


@pytest.mark.parametrize("name", INDICES)
def test_any_mix_of_indices(name):
    indices = INDICES[name]
    x = order_sensitive(4, 5, 6)
    picked = x[tuple(slice(None) if i is None else i for i in indices)]
    values = order_sensitive(*picked.shape)
    on_device = [None if i is None else i.cuda() for i in indices]
    found = scatter.index_put_add(x.cuda(), on_device, values.cuda()).cpu()
    assert_same_bits(found, scatter_oracle.index_put_add(x, indices, values), name)


def rows_by_index() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Many rows into few slots, and the chains by hand."""
    src, index = order_sensitive(5000, 96), torch.randint(0, 7, (5000,))
    expected = numpy.zeros((7, 96), numpy.float32)
    numpy.add.at(expected, index.numpy(), src.numpy())
    return src, index, torch.from_numpy(expected)


def test_many_rows_by_one_index():
    src, index, expected = rows_by_index()

    @bi_compile.eager()
    def added(src, index):
        return torch.zeros(7, 96, device="cuda").index_add(0, index, src)

    assert_same_bits(added(src.cuda(), index.cuda()).cpu(), expected)
    exact = torch.zeros(7, 96, dtype=torch.float64).index_add(0, index, src.double())
    assert (expected - exact).abs().max() < 1e-4 * src.abs().sum(0).max()


def test_stock_pytorch_adds_in_another_order():
    src, index, expected = rows_by_index()
    found = torch.zeros(7, 96, device="cuda").index_add(0, index.cuda(), src.cuda()).cpu()
    assert not same_bits(found, expected)


@pytest.mark.parametrize("dtype", ORDERED, ids=str)
def test_topk_is_the_oracle(dtype):
    for n in (1, 2, 5, 31, 128, 129, 700, 3000):
        x = with_ties(3, n, dtype=dtype, values=30)
        if dtype.is_floating_point:
            x[:, n // 2] = -torch.tensor(torch.nan, dtype=dtype)
        for largest in (True, False):
            for k in {0, 1, n // 2, n}:
                found = order_statistics.topk(x.cuda(), k, 1, largest)
                _, places = order_oracle.topk(x, k, 1, largest)
                assert_same_bits(found[1].cpu(), places, f"{k} of {n}")
                # As integers: gather of bf16 on the CPU changes the bits of a NaN.
                values = as_integers(x).gather(1, places)
                assert torch.equal(as_integers(found[0].cpu()), values), f"{k} of {n}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_sorting_keeps_equal_elements_in_their_order(dtype):
    for n in (5, 300, 3000, 50_000):
        x = with_ties(2, n, dtype=dtype, values=30)
        for descending in (False, True):
            torch.compiler.reset()
            compiled = torch.compile(
                lambda x, d=descending: torch.sort(x, dim=1, descending=d), backend="batch_invariant"
            )
            want = torch.sort(x, dim=1, descending=descending, stable=True)
            for got, expected in zip(compiled(x.cuda()), want, strict=True):
                assert_same_bits(got.cpu(), expected, f"{n} {descending}")


def test_compiled_graphs_are_the_ops_one_by_one():
    table, tokens = torch.randn(50, 32, device="cuda"), torch.randint(0, 50, (4, 60), device="cuda")

    def step(table, tokens):
        table = table.detach().requires_grad_()
        x = F.embedding(tokens, table).cumsum(1)
        values, places = x.topk(5, -1)
        slots = torch.zeros(4, 60, 32, device="cuda").scatter_add(-1, places, values)
        (gradient,) = torch.autograd.grad((slots * x).sum(), table)
        return x.detach(), values.detach(), slots.detach(), gradient

    torch.compiler.reset()
    compiled = torch.compile(step, backend="batch_invariant")(table, tokens)
    with bi_compile.eager():
        eager = step(table, tokens)
    for found, expected in zip(compiled, eager, strict=True):
        assert_same_bits(found, expected)
