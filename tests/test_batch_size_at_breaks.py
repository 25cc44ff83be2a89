"""Questions for the size of the batch before, behind and across a graph break."""

import pytest
import torch

import bi_compile
from bi_compile import dynamo
from tests.test_batch_size import X, told

pytestmark = pytest.mark.usefixtures("nothing_told_yet")


def after_a_break(x):
    y = x * 2
    torch._dynamo.graph_break()
    return y * 2 if y.shape[0] > 4 else y * 3


def before_a_break(x):
    x = x * 2 if x.shape[0] > 4 else x * 3
    torch._dynamo.graph_break()
    return x + 1


def before_anything(x):
    if x.shape[0] > 4:
        torch._dynamo.graph_break()
    return x + 1


@pytest.mark.parametrize("model", [after_a_break, before_a_break, before_anything])
def test_around_graph_breaks(model):
    (warning,) = told(bi_compile.explain(model), X.clone())
    assert f"in {model.__name__}:  " in str(warning.message)
    dynamo._warned.clear()
    compiled = torch.compile(model, backend="batch_invariant")
    assert len(told(compiled, X.clone(), X[:5].clone(), X[:3].clone())) == 1


def number_over_a_break(x):
    size = x.shape[0]
    y = x * 2
    torch._dynamo.graph_break()
    return y * 2 if size > 4 else y * 3


def test_a_number_that_crosses_a_break_is_known_with_the_second_size():
    compiled = torch.compile(number_over_a_break, backend="batch_invariant")
    (warning,) = told(compiled, X.clone(), X[:5].clone())
    assert "asks whether B > 4" in str(warning.message)
    assert "in number_over_a_break:  return y * 2 if size > 4 else y * 3" in str(warning.message)
