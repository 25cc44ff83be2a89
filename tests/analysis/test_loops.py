"""Loops over samples: all are taken out, the same is done to each, and they are put back in their places."""

import pytest
import torch
import torch.nn.functional as F

import bi_compile
from bi_compile.report import collect
from bi_compile.testing import assert_batch_invariant
from tests.analysis.test_flow import B, D, S, X, analysed

W = bi_compile.mark_batch(torch.randn(D, D), None)


def block(sample):
    attended = torch.softmax(sample @ W @ sample.T / 3, -1) @ sample
    return F.layer_norm(attended + sample.mean(0), (D,))


def filled(x, base):
    for i in range(x.shape[0]):
        base[i] = block(x[i])
    return base


def filled_rows(x):
    out = torch.empty_like(x)
    for i in range(x.shape[0]):
        out[i : i + 1] = x[i : i + 1] * 2
    return out


APART = {
    "unbind and stack": lambda x: torch.stack([block(sample) for sample in x.unbind(0)]),
    "iterated": lambda x: torch.stack([block(sample) for sample in x]),
    "by index": lambda x: torch.stack([block(x[i]) for i in range(x.shape[0])]),
    "from the end": lambda x: torch.stack([block(x[i - x.shape[0]]) for i in range(x.shape[0])]),
    "batches of one": lambda x: torch.cat([x[i : i + 1] * 2 for i in range(x.shape[0])]),
    "split": lambda x: torch.cat([piece.relu() for piece in x.split(1)]),
    "chunks": lambda x: torch.cat([piece.relu() for piece in x.chunk(x.shape[0])]),
    "tokens": lambda x: torch.cat([block(sample) for sample in x]).view(x.shape),
    "several of each": lambda x: torch.cat(
        [part for s in x for part in (s * 2, s.sum(0, keepdim=True))]
    ).view(x.shape[0], S + 1, D)[:, 1:],
    "on another dim": lambda x: torch.stack([block(sample) for sample in x], 1).transpose(0, 1),
    "two results": lambda x: torch.stack([s.amax(0) for s in x])[:, None] + torch.stack([s * 2 for s in x]),
    "with the class token": lambda x: torch.stack([torch.cat([torch.ones(1, D), s]) for s in x])[:, 1:],
}


def picked(x):
    return torch.stack([sample.take(torch.tensor([1, 3])) for sample in x])


def picked_by_place(x):
    return torch.stack([sample.take(torch.tensor([i, 3])) for i, sample in enumerate(x)])


def test_constants_made_in_a_loop_are_told_by_value():
    torch.compiler.reset()
    compiled = torch.compile(picked, backend="batch_invariant", fullgraph=True)
    assert_batch_invariant(compiled, X, sizes=(1, 2, 3), trials=1)
    with pytest.raises(Exception, match="mixes the samples of a batch: it takes one sample out"):
        torch.compile(picked_by_place, backend="batch_invariant", fullgraph=True)(X)


MIXED = {
    "reversed": lambda x: torch.stack([s * 2 for s in x.unbind(0)][::-1]),
    "one left out": lambda x: torch.stack([s * 2 for s in x.unbind(0)][1:]),
    "one twice": lambda x: torch.stack([x[0], *x[:-1]]),
    "one given to all": lambda x: torch.stack([s * x[0].mean() for s in x]),
    "the one before": lambda x: torch.stack([x[i] - x[i - 1] for i in range(x.shape[0])]),
    "a running sum": lambda x: torch.stack([sum(x[: i + 1].unbind(0)) for i in range(x.shape[0])]),
    "times the place": lambda x: torch.stack([s * i for i, s in enumerate(x)]),
    "other ops for some": lambda x: torch.stack([s.relu() if i else s for i, s in enumerate(x)]),
    "weights of places": lambda x: torch.stack([s @ W[i] for i, s in enumerate(x)]),
    "added to the whole": lambda x: x + torch.stack([block(s) for s in x])[0],
    "the first": lambda x: x[0] * 2,
    "a sum of samples": lambda x: sum(s for s in x),
    "half written": lambda x: (
        torch.zeros(B, S, D).index_fill(0, torch.tensor(0), 1.0).select_scatter(x[1], 0, 1)
    ),
    "written to other places": lambda x: torch.zeros(B, S, D).select_scatter(x[0], 0, 1),
    "a count of the others": lambda x: torch.stack([s * (x > 0).sum() for s in x]),
}


@pytest.mark.parametrize("name", APART)
def test_samples_stay_apart(name):
    graph, flow = analysed(APART[name], X.clone())
    assert {n: f.reason for n, f in flow.findings.items()} == {}
    (result,) = graph.output_node().all_input_nodes
    assert flow.value(result).startswith("f32[B"), flow.value(result)


@pytest.mark.parametrize("name", MIXED)
def test_mixing_is_found(name):
    _, flow = analysed(MIXED[name], X.clone())
    assert any(finding.mixes for finding in flow.findings.values())


def test_a_list_of_results_is_one_of_each_sample():
    _, flow = analysed(lambda x: [block(sample) for sample in x], X.clone())
    assert not flow.findings
    _, flow = analysed(lambda x: [block(sample) for sample in x][:2], X.clone())
    assert flow.findings


COMPILED = {
    "stacked": APART["iterated"],
    "written into zeros": lambda x: filled(x, torch.zeros_like(x)),
    "written over": lambda x: filled(x, x.clone()),
    "rows written": filled_rows,
}


@pytest.mark.parametrize("fn", COMPILED.values(), ids=COMPILED)
def test_the_bits_of_a_sample_are_those_alone(fn):
    torch.compiler.reset()

    def model(x):
        return torch.linalg.matrix_exp(fn(x)[:, :, :S] / 9)

    with collect() as report:
        compiled = torch.compile(model, backend="batch_invariant", fullgraph=True)
        assert_batch_invariant(compiled, X, sizes=(1, 2, 3, 4), trials=1)
    assert report.promised
    assert {v.op for v in report.isolated} == {"aten.linalg_matrix_exp.default"}
