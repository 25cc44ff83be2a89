"""What a model's Python asks of the size of the batch, in reports, dumps and on the command line."""

import json

import pytest
import torch

import bi_compile
from bi_compile.cli import main
from bi_compile.errors import BatchSizeWarning
from bi_compile.report import Question

pytestmark = pytest.mark.usefixtures("nothing_told_yet")


def branch(x):
    if x.shape[0] > 4:
        return x * 2
    return x * 3


def test_the_report_says_so_everywhere():
    with pytest.warns(BatchSizeWarning):
        report = bi_compile.explain(branch)(torch.randn(6, 8))
    line = f"{__file__}:{branch.__code__.co_firstlineno + 1}, in branch:  if x.shape[0] > 4:"
    assert report.questions == [Question("B > 4", True, line)]
    assert not report.promised
    assert not report.refused
    lines = str(report).splitlines()
    assert lines[0] == (
        "branch: every sample gets the same bits whatever shares its batch, among batches that answer B > 4 "
        "alike"
    )
    assert "   if  B batch: only among batches that answer B > 4 alike" in lines
    at = lines.index("batch size: the model's Python asks whether B > 4")
    assert lines[at + 1] == f"  {line}"
    (question,) = json.loads(report.json())["questions"]
    assert question["expression"] == "B > 4"
    assert question["where"] == line


def test_the_dump_says_so(tmp_path):
    compiled = torch.compile(branch, backend="batch_invariant", options={"dump": str(tmp_path)})
    with torch.no_grad(), pytest.warns(BatchSizeWarning):
        compiled(torch.randn(6, 8))
    assert "asks whether B > 4" in (tmp_path / "000" / "report.txt").read_text()
    assert "asks whether B &gt; 4" in (tmp_path / "000" / "report.html").read_text()


MODELS = """
import torch


def branch(x):
    if x.shape[0] > 100:
        x = x * 2
    return x.sin()


def number_over_a_break(x):
    size = x.shape[0]
    y = x * 2
    torch._dynamo.graph_break()
    return y.sin() if size < 100 else y


def asking():
    return branch, torch.randn(6, 301)


def breaking():
    return number_over_a_break, torch.randn(6, 301)
"""


@pytest.mark.parametrize(
    ("factory", "question"), [("asking", "B > 100"), ("breaking", "B < 100")], ids=["explained", "compared"]
)
@pytest.mark.filterwarnings("ignore::bi_compile.errors.BatchSizeWarning")
def test_the_command_line_says_so(factory, question, tmp_path, monkeypatch, capsys):
    """Also what only the second size shows. The bits decide the exit status: here they are the same."""
    (tmp_path / "asking_models.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", f"asking_models:{factory}"]) == 0
    text = capsys.readouterr().out
    assert f"batch size: the model's Python asks whether {question}" in text
    assert main(["check", f"asking_models:{factory}", "--json"]) == 0
    assert [q["expression"] for q in json.loads(capsys.readouterr().out)["questions"]] == [question]
