"""Samples may meet where Dynamo leaves its graphs, and nobody follows the batch there: that is told."""

import warnings

import pytest
import torch
from torch._inductor.exc import InductorError

import bi_compile
from bi_compile.errors import GraphBreakWarning

X = torch.tensor([[-5.0, 1.0], [9.0, 9.0], [-3.0, 1.0], [2.0, 4.0]])

pytestmark = pytest.mark.usefixtures("nothing_told_yet")


def chosen(x):
    return x + x[x.sum(1) > 0].mean(0)


def counted(x):
    return x * (x.sum(1) > 0).nonzero().shape[0]


def listed(x):
    return x + sum(x.sum(1).tolist())


def decided(x):
    if (x.sum(1) > 1).any():
        return x * 2
    return x * 3


@torch.compiler.disable
def mean_of_all(x):
    return x.mean(0)


def outside(x):
    return x + mean_of_all(x)


def decided_in_a_loop(x):
    for bound in range(2):
        if x.sum() > bound:
            x = x * 2
    return x


def compiled(fn):
    torch.compiler.reset()
    return torch.compile(fn, backend="batch_invariant")


def told(fn, *inputs):
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        results = [fn(x) for x in inputs]
    return results, [w for w in caught if w.category is GraphBreakWarning]


@pytest.mark.parametrize("fn", [chosen, counted, listed, decided, outside])
def test_samples_that_meet_behind_a_graph_break_are_told(fn):
    (whole, one), warned = told(compiled(fn), X, X[:1].clone())
    assert warned
    assert f"{__file__}:{fn.__code__.co_firstlineno + 1}, in {fn.__name__}" in str(warned[0].message)
    assert not torch.equal(whole[:1], one), "the control: they do meet"


def test_the_message_has_the_reason_the_line_and_ways_out():
    _, (warning, *_) = told(compiled(chosen), X)
    first, order, where, hint = str(warning.message).splitlines()
    assert first.startswith("the batch is not followed across a graph break: ")
    assert "nonzero" in first
    assert order == "  each sum outside graphs has its one order, but may be taken over the batch"
    assert where.endswith("return x + x[x.sum(1) > 0].mean(0)")
    assert hint.startswith("Hint: fullgraph=True refuses to leave graphs.")


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True)
@pytest.mark.parametrize("fn", [chosen, counted])
def test_the_way_out_keeps_rows_and_counts_in_the_graph_where_they_are_refused(fn):
    with pytest.raises(InductorError, match="BatchMixingError"):
        compiled(fn)(X)


def test_it_is_told_once_a_line():
    fn = compiled(chosen)
    _, first = told(fn, X)
    _, again = told(fn, X[:3].clone(), X[:1].clone())
    assert first
    assert len({str(w.message) for w in first}) == len(first)
    assert not again


def test_what_stays_in_graphs_is_not_told():
    (_, _), warned = told(compiled(lambda x: x.softmax(1)), X, X[:2].clone())
    assert not warned


def test_functions_that_say_so_run_outside_untold():
    apart = bi_compile.eager()(lambda x: x.sum(1, keepdim=True))
    (whole, one), warned = told(compiled(lambda x: x * apart(x)), X, X[:1].clone())
    assert not warned
    assert torch.equal(whole[:1], one)


def test_a_frame_that_is_not_captured_at_all_is_told():
    (whole, one), warned = told(compiled(decided_in_a_loop), X, X[:1].clone())
    assert any("all of 'decided_in_a_loop' runs outside graphs" in str(w.message) for w in warned)
    assert not torch.equal(whole[:1], one), "the control: they do meet"
