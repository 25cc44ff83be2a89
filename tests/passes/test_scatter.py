"""Reductions by index become one chain for each slot, gradients too; what only moves elements stays."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.report import collect
from tests.bits import assert_same_bits, order_sensitive
from tests.passes.tables import check_left_alone, check_rewritten

aten = torch.ops.aten
X = torch.randn(3, 5, 7)
INDEX = torch.randint(0, 4, (3, 5))
ROWS = torch.tensor([2, 0, 2, 2, 1])
DEEP = torch.randint(0, 5, (3, 9, 7))
SRC = torch.rand(3, 9, 7) + 0.5
REDUCE, PUT = {"bi_compile.scatter_reduce"}, {"bi_compile.index_put_add"}
MASK = X[:, :, 0] > 0
LENGTHS = torch.tensor([[2, 0, 3], [1, 1, 3], [5, 0, 0]])


def reduced(reduce, own):
    return lambda x, index, src: x.scatter_reduce(1, index, src, reduce, include_self=own)


def segments(reduce):
    return lambda x, lengths: torch.segment_reduce(x, reduce, lengths=lengths, axis=1).nan_to_num(7, 7, -7)


REWRITTEN = {
    "embedding gradient": (
        lambda g, i: aten.embedding_dense_backward(g, i, 4, -1, False), (X, INDEX), REDUCE,
    ),
    "embedding gradient with padding": (
        lambda g, i: aten.embedding_dense_backward(g, i, 4, 1, False), (X, INDEX), REDUCE,
    ),
    "embedding gradient by frequency": (
        lambda g, i: aten.embedding_dense_backward(g, i, 4, 1, True), (X, INDEX), REDUCE,
    ),
    "scatter_add": (lambda x, i, s: x.scatter_add(1, i, s), (X, DEEP, SRC), REDUCE),
    "scatter_add, a smaller index": (lambda x, i, s: x.scatter_add(1, i[:2, :4], s), (X, DEEP, SRC), REDUCE),
    **{
        f"scatter_reduce {reduce}{' alone' * (not own)}": (reduced(reduce, own), (X, DEEP, SRC), REDUCE)
        for reduce in ("sum", "prod", "mean", "amax", "amin")
        for own in (True, False)
    },
    "scatter, adding": (lambda x, i, s: x.scatter(1, i, s, reduce="add"), (X, DEEP, SRC), REDUCE),
    "scatter, multiplying": (lambda x, i, s: x.scatter(1, i, s, reduce="multiply"), (X, DEEP, SRC), REDUCE),
    "scatter of a number, adding": (lambda x, i: x.scatter(1, i, 0.3, reduce="add"), (X, DEEP), REDUCE),
    "index_add": (lambda x, i: x.index_add(2, i, x[..., :5]), (X, ROWS), REDUCE),
    "index_add, scaled": (lambda x, i: x.index_add(0, i, x[[0, 1, 2, 0, 1]], alpha=0.3), (X, ROWS), REDUCE),
    "index_reduce": (lambda x, i: x.index_reduce(1, i, x, "amax"), (X, ROWS), REDUCE),
    "index_reduce mean": (
        lambda x, i: x.index_reduce(1, i, x, "mean", include_self=False), (X, ROWS), REDUCE,
    ),
    "index_put": (lambda x, i: x.index_put((i,), x[0], accumulate=True), (X, ROWS), PUT),
    "index_put of a mask": (lambda x, m: aten.index_put(x, [m], x[0, 0], True), (X, MASK), PUT),
    "put": (lambda x, i: x.put(i, x[0, 0, :5], accumulate=True), (X, ROWS - 1), PUT),
    "gradient of indexing": (
        lambda x, i: aten._index_put_impl(x, [None, i], x, True, True), (X, ROWS), PUT,
    ),
    "gradient of unfold": (
        lambda g: aten.unfold_backward(g.expand(3, 5, 7, 3), [3, 7, 7], 1, 3, 1), (X[:, :, :1, None],), PUT,
    ),
    **{
        f"segment_reduce {reduce}": (segments(reduce), (X[:, :, 0], LENGTHS), REDUCE)
        for reduce in ("sum", "mean", "max", "min", "prod")
    },
    "segment_reduce by offsets": (
        lambda x, i: torch.segment_reduce(x[0], "mean", offsets=i, initial=0.5, unsafe=True),
        (X, torch.tensor([0, 2, 2, 5])),
        REDUCE,
    ),
}  # fmt: skip
LEFT_ALONE = {
    "embedding": (lambda x, i: F.embedding(i, x[0]), (X, INDEX)),
    "gather": (lambda x, i: x[:, 0].gather(1, i), (X, INDEX)),
    "scatter": (lambda x, i: x.scatter(1, i, x), (X, X.argsort(1))),
    "index_put": (lambda x, i: x.index_put((i[:2], i[:2]), x[0, 0]), (X, ROWS)),
    "index_copy": (lambda x, i: x.index_copy(1, i[[0, 1, 4]], x[:, :3]), (X, ROWS)),
    "masked_scatter": (lambda x, m: x.masked_scatter(m[..., None], x.flip(0)), (X, MASK)),
    "index_add of integers": (lambda x, i: x.index_add(1, i, x), (X.long(), ROWS)),
    "scatter_reduce of integers": (lambda x, i: x.scatter_reduce(1, i, x, "amax"), (X.long(), DEEP[:, :5])),
    "histc": (lambda x: torch.histc(x, 10, -2, 2), (X,)),
    "bincount": (lambda x: aten.bincount(x.reshape(-1)), (INDEX,)),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_is_rewritten(name):
    fn, inputs, ops = REWRITTEN[name]
    check_rewritten(fn, inputs, ops)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_is_left_alone(name):
    check_left_alone(*LEFT_ALONE[name])


def test_bincount_adds_weights_in_order():
    index, weights = torch.randint(0, 9, (400,)), order_sensitive(400)
    with bi_compile.eager():
        ours, counted = torch.bincount(index, weights, 12), torch.bincount(index)
    want = torch.zeros(12)
    for i, w in zip(index.tolist(), weights, strict=True):
        want[i] += w
    assert_same_bits(ours, want)
    assert torch.equal(counted, torch.bincount(index))


def moves(x, index, rows):
    """Reductions by index within a sample, whose gradients are gathers and additions by index."""
    picked = x[:, rows]
    added = x.scatter_add(1, index, x * 0.3) + torch.zeros_like(x).index_add(1, rows, picked * 0.7, alpha=0.1)
    put = x.index_put((torch.arange(x.shape[0])[:, None], index), x[:, :1] * 0.9, accumulate=True)
    mean = x.scatter_reduce(1, index, x.flip(1), "mean", include_self=False)
    return added, put, mean, x.gather(1, index), x.cummax(1).values


def test_compiled_is_eager_forward_and_backward_for_any_batch():
    torch.compiler.reset()
    x, index, rows = order_sensitive(9, 40), torch.randint(0, 7, (9, 40)), torch.randint(0, 40, (60,))

    def run(fn, x, index):
        x = x.clone().requires_grad_()
        outputs = fn(x, index, rows)
        sum((o * o.detach()).sum() for o in outputs).backward()
        return [o.detach() for o in outputs] + [x.grad]

    with bi_compile.eager():
        want = run(moves, x, index)
    compiled = torch.compile(moves, backend="batch_invariant")
    with collect() as report:
        for threads, part in ((1, slice(0, 9)), (2, slice(4, 8))):
            torch.set_num_threads(threads)
            for got, whole in zip(run(compiled, x[part], index[part]), want, strict=True):
                assert_same_bits(got, whole[part])
    assert {"bi_compile.scatter_reduce", "bi_compile.index_put_add"} <= set(report.canonical)
    assert not report.left_alone


def test_control_stock_graphs_and_stock_eager_do_not_agree():
    """Stock eager adds in order on the CPU and rounds each time; its graphs round bf16 otherwise."""
    torch.compiler.reset()
    x, index = order_sensitive(9, 40, dtype=torch.bfloat16), torch.randint(0, 7, (9, 40))

    def add(x):
        return x.new_zeros(9, 7).scatter_add(1, index, x)

    assert not torch.equal(torch.compile(add)(x), add(x))
    compiled = torch.compile(add, backend="batch_invariant")(x)
    with bi_compile.eager():
        assert_same_bits(compiled, add(x))


def test_plain_scatters_of_unique_indices_are_exact_in_compiled_graphs():
    torch.compiler.reset()

    def fn(x, order, mask):
        sample = torch.arange(x.shape[0])[:, None]
        scattered = torch.zeros_like(x).scatter(1, order, x), x.index_put((sample, order), x.flip(1))
        copied = x.index_copy(1, torch.tensor([3, 1]), x[:, :2]), x.masked_scatter(mask, x[:, :167] * 2)
        return *scattered, *copied, x.index_put((mask,), torch.tensor(2.0))

    x = torch.randn(33, 500)
    order, mask = torch.rand(33, 500).argsort(1), (torch.arange(500) % 3 == 0).expand(33, 500)
    compiled = torch.compile(fn, backend="batch_invariant")
    for threads, count in ((2, 33), (1, 1), (2, 7)):
        torch.set_num_threads(threads)
        part = x[:count], order[:count], mask[:count].contiguous()
        for got, want in zip(compiled(*part), fn(*part), strict=True):
            assert_same_bits(got, want)
