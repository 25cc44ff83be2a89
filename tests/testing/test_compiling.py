"""A process may check any number of models of one class, and torch.nn's own."""

import pytest
import torch

from bi_compile.testing.compiling import compiled


@pytest.fixture
def few_graphs():
    """Dynamo may make two graphs of each code object: one model's, of one sample and of any number."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        yield


def check(by):
    for width in (3, 5, 7):
        model = torch.nn.Linear(width, 2).requires_grad_(False)
        x = torch.randn(4, width)
        torch.testing.assert_close(by(model)(x), model(x))


def test_each_function_has_code_of_its_own(few_graphs):
    check(lambda model: compiled(model, "batch_invariant"))


def test_without_it_the_third_is_refused(few_graphs):
    with pytest.raises(Exception, match="recompile limit reached"):
        check(lambda model: torch.compile(model, backend="batch_invariant"))


def test_the_fixture_has_it(few_graphs, batch_invariant):
    for width in (301, 303, 305):
        model = torch.nn.Linear(width, 75).requires_grad_(False)
        batch_invariant(model, torch.randn(8, width), sizes=(1, 7), control=True, reference=True)


def test_sizes_of_one_model_do_not_make_those_of_the_next_symbolic():
    seen = []

    def backend(module, inputs):
        seen.extend(t.shape[1] for t in inputs if t.dim() == 2 and not isinstance(t, torch.nn.Parameter))
        return module

    for width in (3, 5, 7):
        compiled(lambda x: x * 2, backend)(torch.randn(4, width))
    assert seen == [3, 5, 7]
    assert all(type(size) is int for size in seen)
