"""What a report holds and says: facts, rungs, text, JSON."""

import json
import subprocess
import sys

import pytest
import torch

from bi_compile.report import (
    CANONICAL,
    ISOLATED,
    LEFT_ALONE,
    MIXES,
    ORDER_FREE,
    UNKNOWN,
    Break,
    Graph,
    Kernel,
    Leak,
    Question,
    Report,
    Verdict,
    collect,
    orders,
    record_break,
    record_compilation,
    record_graph,
    record_leak,
    record_question,
)
from bi_compile.report.rungs import rungs
from bi_compile.report.trees import tree, tree_of
from bi_compile.templates import registry
from tests.report.examples import bad, good


def test_a_report_holds_what_happened_while_it_was_open():
    with collect() as outer:
        record_compilation()
        with collect() as inner:
            record_graph(Graph([Verdict("bi_compile.mm", CANONICAL), Verdict("aten.sort", LEFT_ALONE)]))
            for _ in range(2):
                record_break(Break("print", "model.py:3"))
                record_leak(Leak("skipped frame", "nn.LSTM runs as stock PyTorch"))
                record_question(Question("B > 4"))
    record_break(Break("later"))
    assert inner.compilations == 0
    assert outer.compilations == 1
    for report in (outer, inner):
        assert [v.op for v in report.verdicts] == ["bi_compile.mm", "aten.sort"]
        assert report.breaks == [Break("print", "model.py:3")]
        assert len(report.leaks) == 1
        assert report.questions == [Question("B > 4")]


def test_outputs_behind_a_refused_op_are_not_promised():
    assert good().graphs[0].not_promised == []
    assert bad().graphs[0].not_promised == ["m", "cumsum"]


def of(*kinds: str, op: str = "bi_compile.attention") -> Report:
    return Report("m", [Graph([Verdict(op, kind) for kind in kinds])], 1)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (of(CANONICAL, ORDER_FREE), "yes yes if if yes"),
        (of(CANONICAL, ISOLATED), "yes yes no no yes"),
        (of(CANONICAL, MIXES), "yes no no no yes"),
        (of(CANONICAL, LEFT_ALONE), "no no no no no"),
        (of(CANONICAL, UNKNOWN), "yes if if if yes"),
        (Report("m", of(CANONICAL).graphs, 1, breaks=[Break("print")]), "yes if if if yes"),
        (Report("m", of(CANONICAL).graphs, 1, leaks=[Leak("skipped frame", "why")]), "no no no no no"),
        (Report("m", of(CANONICAL).graphs, 1, questions=[Question("B > 4")]), "yes if if if yes"),
        (Report("m", error="no compiler"), "no no no no no"),
        (Report("m"), "no no no no no"),
    ],
    ids=["good", "isolated", "mixes", "left alone", "unknown", "break", "leak", "question", "error", "empty"],
)
def test_rungs_are_judged_by_the_verdicts(report, expected):
    found = rungs(report)
    assert "".join(rung.letter for rung in found) == "RBPQG"
    assert " ".join(rung.holds for rung in found) == expected
    assert all(rung.why for rung in found)


def test_questions_name_the_batches_that_answer_them_alike():
    report = of(CANONICAL)
    assert report.among == ""
    report.questions = [Question("B > 4", where="a"), Question("B > 4", where="b")]
    assert report.among == "batches that answer B > 4 alike"
    report.questions += [Question("B > 8"), Question("B == 1")]
    assert report.among == "batches that answer B > 4, B > 8 and B == 1 alike"
    report.questions += [Question("2*B", relation=False)]
    assert report.among == "batches of one size"
    assert not report.promised


def test_the_text_names_every_trouble():
    text = str(bad())
    for line in (
        "<b>Bad</b>: refused: no promise for aten.m.dim, aten.cumsum.default",
        "mixes the batch: aten.m.dim (m): a & b <i>",
        "  path x > x",
        "unknown: aten.u.default (u): no rule",
        "sample by sample: aten.x.default (x): no template",
        "not promised: output m, cumsum of graph 0",
        "graph break: call of print",
        "batch size: the model's Python asks whether B < 4",
        "no promise: nn.LSTM ran as stock PyTorch",
    ):
        assert line in text.splitlines()


def test_the_table_has_a_line_for_every_op():
    lines = good().table().splitlines()
    assert lines[0] == "graph 0"
    assert len(lines) == 1 + 2 + 5
    assert (
        lines[4].split()
        == (
            "canonical erf aten.erf.default f32[B, 8] from aten.gelu "
            "/home/me/model.py:7, in forward: return x + gelu(self.fc(x))"
        ).split()
    )


@pytest.mark.parametrize("make", [good, bad])
def test_json_holds_everything(make):
    report = make()
    data = json.loads(report.json())
    assert data["promised"] is report.promised
    assert [v["op"] for g in data["graphs"] for v in g["ops"]] == [v.op for v in report.verdicts]
    assert [rung["letter"] for rung in data["rungs"]] == list("RBPQG")
    assert len(data["refused"]) == len(report.refused)
    assert data["breaks"] == [{"reason": b.reason, "where": b.where} for b in report.breaks]
    assert [q["expression"] for q in data["questions"]] == [q.expression for q in report.questions]
    canonical = {v.op for v in report.verdicts if v.kind == CANONICAL}
    assert set(data["trees"]) == canonical


def test_trees_are_read_from_the_contracts():
    assert tree_of("bi_compile.mm") == tree("contraction")
    assert tree("contraction").summary == "Products of matrices with one order of summation."
    assert tree("contraction").constants == {"CONTRACTION_CHUNK": 256}
    assert set(tree("attention").constants) == {"ATTENTION_KV_BLOCK", "ATTENTION_KV_SPLIT"}
    assert tree_of("aten.erf.default") == tree("pointwise")
    for family in set(registry.ops().values()):
        assert tree(family).summary.endswith("."), family
        assert len(str(tree(family))) < 200


def test_graphs_that_a_cache_holds_are_listed_all_the_same():
    model, x = torch.nn.Linear(5, 3).requires_grad_(False), torch.randn(4, 5)
    for _ in range(2):
        torch.compiler.reset()
        with collect() as report:
            torch.compile(model, backend="batch_invariant")(x)
        assert report.canonical == {"bi_compile.linear": 1}
        torch.compiler.reset()
        torch.compile(model, backend="batch_invariant")(x)


def test_functions_of_libraries_outside_graphs_are_counted_not_listed():
    report = Report(
        "m",
        breaks=[
            Break(
                "all of 'mine' runs outside graphs: Dynamo skips its file",
                "/home/me/torch/model.py:3, in mine",
            ),
            Break(
                "all of 'forward' runs outside graphs: Dynamo skips its file",
                "/lib/torch/nn/a.py:1, in forward",
                True,
            ),
            Break(
                "all of '__iter__' runs outside graphs: Dynamo skips its file",
                "<frozen abc>:1, in __iter__",
                True,
            ),
        ],
    )
    assert "graph break: all of 'mine'" in str(report)
    assert "outside graphs too: 2 functions of PyTorch and Python" in str(report)
    assert "__iter__" not in str(report)


PRODUCT = Kernel("mm", "contraction", "bfloat16", 64, "", 90)


def test_the_order_of_a_kernel_is_in_every_form_of_a_report(monkeypatch, tmp_path):
    monkeypatch.setattr(orders, "order", lambda kernel: f"<{kernel.op} of {kernel.length}>")
    verdicts = [
        Verdict("bi_compile.mm", CANONICAL, node="mm", kernel=PRODUCT),
        Verdict("bi_compile.mm", CANONICAL, node="mm_1"),
    ]
    report = Report("m", [Graph(verdicts)], 1)
    first, second = json.loads(report.json())["graphs"][0]["ops"]
    assert (first["order"], second["order"]) == ("<mm of 64>", "")
    assert report.table().splitlines()[-2:] == ["orders of sums on CUDA devices", "  mm  mm  <mm of 64>"]
    page = report.html(tmp_path / "page.html").read_text()
    assert page.count("<i>&lt;mm of 64&gt;</i>") == 1


def test_without_a_cuda_device_there_is_no_order_and_no_triton():
    program = """
import sys, torch, bi_compile
class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, NoTriton())
report = bi_compile.explain(torch.nn.Linear(8, 4))(torch.randn(2, 8))
assert all(verdict.order == "" for verdict in report.verdicts)
assert "orders" not in report.table()
report.json()
assert "triton" not in sys.modules
from bi_compile.report import Kernel
from bi_compile.report.orders import order
for op, family in (("mm", "contraction"), ("sum", "reduction"), ("attention", "attention")):
    print(order(Kernel(op, family, "bfloat16", 64, "", 90)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.splitlines()) == {"not certified: Triton is not installed"}
