"""Rung B and rung G on a whole model: neither the batch nor the way it was compiled shows in a bit."""

import contextlib
import itertools

import pytest
import torch

import bi_compile
from bi_compile.errors import BatchInvariantError
from bi_compile.report import collect
from tests.bits import assert_same_bits, same_bits
from tests.models import Block, block_inputs

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def model(dtype):
    torch.compiler.reset()
    return Block().to(dtype).eval()


def expected(model, dtype, n=33):
    inputs = block_inputs(n, dtype=dtype)
    with torch.no_grad(), bi_compile.eager():
        return model(*inputs)


def rows(dtype, start, count, n=33):
    x, mask = block_inputs(n, dtype=dtype)
    return x[start : start + count].clone(), mask[start : start + count].clone()


@pytest.mark.parametrize(
    ("dynamic", "order"),
    [(None, (1, 2, 5, 33)), (None, (33, 1, 5, 2)), (True, (5, 33, 2, 1)), (False, (2, 33, 1))],
    ids=str,
)
def test_any_batch_in_any_order_of_first_calls(model, dtype, dynamic, order):
    compiled = torch.compile(model, backend="batch_invariant", dynamic=dynamic)
    want = expected(model, dtype)
    for count in order:
        with torch.no_grad():
            assert_same_bits(compiled(*rows(dtype, 33 - count, count)), want[33 - count :], f"batch {count}")


def test_outputs_and_gradients_of_inputs_are_batch_invariant_and_equal_eager_ones(model, dtype):
    compiled = torch.compile(model, backend="batch_invariant")
    want = expected(model, dtype)

    def gradient(fn, start, count, mode=contextlib.nullcontext):
        x, mask = rows(dtype, start, count)
        with mode():
            out = fn(x.requires_grad_(), mask)
            out.float().square().sum().backward()
        assert_same_bits(out.detach(), want[start : start + count], f"outputs of {count}")
        return x.grad

    whole = gradient(compiled, 0, 12)
    assert whole.isfinite().all()
    assert_same_bits(gradient(compiled, 3, 1), whole[3:4], "alone")
    assert_same_bits(gradient(compiled, 2, 5), whole[2:7], "in five")
    assert_same_bits(gradient(model, 0, 12, bi_compile.eager), whole, "eager")


def test_with_a_graph_break(dtype):
    torch.compiler.reset()
    model = Block(graph_break=True).to(dtype).eval()
    compiled = torch.compile(model, backend="batch_invariant")
    want = expected(model, dtype)
    for count in (5, 1, 33):
        with torch.no_grad():
            assert_same_bits(compiled(*rows(dtype, 0, count)), want[:count], f"batch {count}")


def test_padding_and_its_garbage_do_not_show(model, dtype):
    compiled = torch.compile(model, backend="batch_invariant")
    x, mask = block_inputs(6, dtype=dtype)
    for garbage, extra in itertools.product((0.0, 3e4), (1, 9)):
        longer = torch.cat(
            [torch.where(mask.unsqueeze(-1), x, garbage), torch.full((6, extra, 24), garbage)], 1
        )
        more = torch.cat([mask, torch.zeros(6, extra, dtype=torch.bool)], 1)
        with torch.no_grad():
            assert_same_bits(compiled(longer.to(dtype), more), compiled(x, mask), f"{garbage} {extra}")


def test_two_graphs_serve_every_batch_size(model, dtype):
    compiled = torch.compile(model, backend="batch_invariant")
    with torch.no_grad(), collect() as report:
        for count in (5, 33, 2, 1, 8, 4, 16, 3):
            compiled(*rows(dtype, 0, count))
    assert report.compilations == 2, "one for batch 1, one for all others"
    assert not report.left_alone
    assert report.canonical["bi_compile.linear"] >= 5
    assert report.canonical["bi_compile.attention"] >= 1


def test_as_accurate_as_stock(model, dtype):
    x, mask = block_inputs(33, dtype=dtype)
    with torch.no_grad():
        ours = torch.compile(model, backend="batch_invariant")(x, mask).double()
        stock = model(x, mask).double()
        exact = model.double()(x.double(), mask)
    assert (ours - exact).abs().max() <= 1.5 * (stock - exact).abs().max() + 1e-7


def test_control_stock_pytorch_changes_bits_with_the_batch():
    torch.compiler.reset()

    def changed(fn, dtype):
        with torch.no_grad():
            whole = fn(*rows(dtype, 0, 33))
            return any(not same_bits(fn(*rows(dtype, i, 1)), whole[i : i + 1]) for i in range(33))

    models = {dtype: Block().to(dtype).eval() for dtype in DTYPES}
    # Compiled only where eager mode happens to keep the bits.
    assert any(
        changed(run(model), dtype)
        for run in (lambda model: model, torch.compile)
        for dtype, model in models.items()
    )


def test_threads_do_not_show(model, dtype):
    compiled = torch.compile(model, backend="batch_invariant")
    want = expected(model, dtype)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.no_grad():
            assert_same_bits(compiled(*rows(dtype, 0, 33)), want, f"{threads} threads")


def test_the_recompile_limit_never_leads_to_eager_execution():
    torch.compiler.reset()
    compiled = torch.compile(Block().eval(), backend="batch_invariant", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        compiled(*block_inputs(2))
        compiled(*block_inputs(33))  # sizes whose static graphs are in the caches by now
        with pytest.raises(BatchInvariantError, match="recompile limit reached"):
            compiled(*block_inputs(4))


def test_zero_samples():
    torch.compiler.reset()
    compiled = torch.compile(Block().eval(), backend="batch_invariant")
    x, mask = block_inputs(2)
    with torch.no_grad():
        assert compiled(x, mask).shape == (2, 10)
        assert compiled(x[:0], mask[:0]).shape == (0, 10)
