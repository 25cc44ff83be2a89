"""explain(model)(*inputs): all problems at once, on real models, without generating code."""

import pytest
import torch

import bi_compile
from tests.models import Block, block_inputs


def test_a_model_is_reported_with_the_users_names_and_lines():
    report = bi_compile.explain(Block().eval().requires_grad_(False))(*block_inputs(3))
    assert report.name == "Block"
    assert report.promised
    assert report.compilations == 1
    (graph,) = report.graphs
    names = {i.name: i.batched for i in graph.inputs}
    assert names["x"]
    assert names["mask"]
    assert names["self.norm.weight"] is False
    nodes = {i.node for i in graph.inputs} | {v.node for v in graph.verdicts}
    for verdict in graph.verdicts:
        assert verdict.node
        assert set(verdict.inputs) <= nodes
        assert "models.py" in (verdict.where or "")
        assert "f32[" in verdict.value or "bool[" in verdict.value
    assert set(graph.outputs) <= nodes
    assert {v.origin for v in graph.verdicts if v.op == "aten.erf.default"} == {"aten.gelu"}


def refused(x):
    head = x * 2
    return torch.linalg.qr(head).R, torch.linalg.svdvals(x), head


def test_all_refused_ops_are_reported_at_once_and_nothing_is_raised_or_warned(recwarn):
    report = bi_compile.explain(refused)(torch.randn(3, 4))
    assert {v.op for v in report.refused} == {"aten.linalg_qr.default", "aten._linalg_svd.default"}
    assert not report.promised
    (graph,) = report.graphs
    assert len(graph.not_promised) == 2
    assert len(graph.outputs) == 3
    assert not [w for w in recwarn if "bi_compile" in str(w.message)]


def test_what_stops_any_compilation_is_in_the_report():
    report = bi_compile.explain(lambda x: x.float() + 1)(torch.randn(3, 4).to(torch.float8_e4m3fn))
    assert report.error is not None
    assert report.error.startswith("UnsupportedDtypeError: ")
    assert "not compiled: UnsupportedDtypeError" in str(report)


def test_errors_of_the_model_are_raised():
    def broken(x):
        raise KeyError("mine")

    with pytest.raises(Exception, match="mine"):
        bi_compile.explain(broken)(torch.randn(3, 4))


def test_a_compiled_model_is_unwrapped_and_compiles_again_afterwards():
    compiled = torch.compile(torch.nn.Linear(3, 2), backend="batch_invariant")
    x = torch.randn(4, 3)
    report = bi_compile.explain(compiled)(x)
    assert report.canonical["bi_compile.linear"] == 1
    assert compiled(x).shape == (4, 2)


def test_code_after_a_graph_break_sees_real_values():
    def two(x):
        y = x.sum(1)
        torch._dynamo.graph_break()
        return y * 2

    report = bi_compile.explain(two)(torch.randn(3, 4))
    assert len(report.graphs) == 2
    assert report.canonical["bi_compile.sum"] == 1


def test_a_training_step_has_a_backward_graph():
    model = torch.nn.Linear(3, 2)
    report = bi_compile.explain(lambda x: model(x).square().mean(1))(torch.randn(4, 3, requires_grad=True))
    assert [graph.backward for graph in report.graphs] == [False, True]
