"""Numbers made of the batch's size: how many samples there are may not enter what each of them gets.

Each case is traced as in test_flow, whose words about sizes hold here too.
"""

import pytest
import torch
from torch import nn

from tests.analysis.test_flow import D, S, X, analysed

MIXED = {
    "a line": lambda x: x + torch.linspace(0, 1, x.shape[0])[:, None, None],
    "a line of places": lambda x: x + (torch.arange(x.shape[0]).float() / x.shape[0])[:, None, None],
    "places": lambda x: x + torch.arange(x.shape[0])[:, None, None],
    "a window": lambda x: x * torch.hann_window(x.shape[0])[:, None, None],
    "running sums of ones": lambda x: x + torch.ones(x.shape[0]).cumsum(0)[:, None, None],
    "a feature": lambda x: torch.cat(
        [x, torch.linspace(0, 1, x.shape[0])[:, None, None].expand(-1, S, 1)], 2
    ),
    "for every token": lambda x: (
        x.flatten(0, 1) + torch.linspace(0, 1, x.shape[0]).repeat_interleave(S)[:, None]
    ),
    "a choice": lambda x: torch.where((torch.arange(x.shape[0]) > 2)[:, None, None], x, -x),
}
COUNTED = {
    "ones added up": lambda x: x / torch.ones(x.shape[0]).sum(),
    "a number": lambda x: x + torch.full((1,), x.shape[0]),
    "a tensor": lambda x: x * torch.scalar_tensor(x.shape[0]),
    "weights over it": lambda x: x @ (W / x.shape[0]),
    "a weight": lambda x: x @ (torch.eye(D) / x.shape[0]),
    "the last of a line": lambda x: x + (torch.arange(x.shape[0]).float() / 2)[-1],
    "a norm's weight": lambda x: nn.functional.layer_norm(x, (D,), torch.full((D,), x.shape[0] * 1.0)),
}
W = torch.randn(D, D)

APART = {
    "zeros": lambda x: torch.cat([torch.zeros(x.shape[0], S, 1), x], 2),
    "the mean of ones": lambda x: x + torch.ones(x.shape[0], D).mean(0),
    "a line of tokens": lambda x: x + torch.linspace(0, 1, x.shape[1])[:, None],
    "repeated for each sample": lambda x: x + torch.arange(S).repeat(x.shape[0], 1)[:, :, None],
    "tokens of every sample": lambda x: (
        x.flatten(0, 1) + torch.linspace(0, 1, S).repeat(x.shape[0])[:, None]
    ).view(x.shape),
    "expanded weights": lambda x: x + W[:S].expand(x.shape[0], S, D),
    "places by halves": lambda x: x[(torch.arange(2 * x.shape[0]).float() / 2).long()],
    "places that do not matter": lambda x: x + (torch.arange(x.shape[0]) >= 0)[:, None, None],
}


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", MIXED)
def test_a_place_in_the_batch_may_not_enter_arithmetic(name, symbolic):
    _assert_found(MIXED[name], symbolic)


@pytest.mark.parametrize("name", COUNTED)
def test_the_number_of_samples_may_not_enter_arithmetic(name):
    """In a graph of one batch size it is a number like any other."""
    _assert_found(COUNTED[name], symbolic=True)


def _assert_found(fn, symbolic):
    _, flow = analysed(fn, X.clone(), symbolic=symbolic)
    (found, *_) = [node for node, finding in flow.findings.items() if finding.mixes]
    assert flow.findings[found].path[0].op == "placeholder"
    assert flow.findings[found].path[-1] is found


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", APART)
def test_numbers_that_are_the_same_for_every_sample_keep_them_apart(name, symbolic):
    graph, flow = analysed(APART[name], X.clone(), symbolic=symbolic)
    assert {n: f.reason for n, f in flow.findings.items()} == {}
    (result,) = graph.output_node().all_input_nodes
    assert flow.value(result).startswith(("f32[B, ", "f32[2*B, ", "f32[B*2, ")), flow.value(result)


def test_the_way_shown_is_that_of_the_count():
    """Not the short one, of the samples themselves."""
    _, flow = analysed(lambda x: x * (x > 0).sum(), X.clone(), symbolic=True)
    (finding,) = flow.findings.values()
    assert [node.name for node in finding.path[1:]] == ["gt", "sum_1", "mul"]
    _, flow = analysed(lambda x: x * (x > 0).nonzero().shape[0], X.clone(), symbolic=True)
    (finding,) = flow.findings.values()
    assert [node.name for node in finding.path[1:-1]] == ["gt", "nonzero", "sym_size_int"]


def test_kernels_that_load_when_first_called_count_too():
    """While a graph is compiled, torch looks ops up in tables of its own."""
    torch.compiler.reset()

    def model(x):
        return x / torch.ones(x.shape[0]).sum()  # the line to be named

    with pytest.raises(
        Exception, match=r"aten.div.Tensor mixes the samples of a batch: .* a count"
    ) as caught:
        torch.compile(model, backend="batch_invariant")(X)
    assert "test_counts.py" in str(caught.value)
    assert "the line to be named" in str(caught.value)
