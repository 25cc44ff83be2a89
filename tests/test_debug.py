"""The dump: each stage that changed something, the report, the kernels, as files, logs and artifacts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

PROGRAM = """
import torch
from torch import nn
model = nn.Sequential(nn.Linear(8, 6), nn.GELU()).requires_grad_(False)
torch.compile(lambda x: model(x), backend="batch_invariant")(torch.randn(4, 8))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """One compilation in a process of its own with all three ways switched on: (folder, stderr, trace)."""
    folder = tmp_path_factory.mktemp("shown")
    environment = {"BI_COMPILE_DUMP": "1", "TORCH_LOGS": "+bi_compile", "TORCH_TRACE": str(folder / "trace")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    trace = "".join(path.read_text() for path in (folder / "trace").iterdir())
    return folder / "bi_compile_dump" / "000", run.stderr, trace


NAMES = ["00_captured.py", "01_whole_ops.py", "02_traced_forward.py", "03_kernels_forward.txt"]


def test_stages_are_numbered_and_one_that_changes_nothing_is_left_out(shown):
    folder, _, _ = shown
    assert sorted(path.name for path in folder.iterdir()) == [
        *NAMES,
        "report.html",
        "report.json",
        "report.txt",
    ]


def test_graphs_are_python_with_the_batch_behind_each_line(shown):
    folder, _, _ = shown
    for name in NAMES[:3]:
        text = (folder / name).read_text()
        compile(text, name, "exec")
        assert any(line.startswith("    # ") and line.endswith(": f32[B, 8]") for line in text.splitlines())
    assert "torch._C._nn.linear(" in (folder / NAMES[0]).read_text()
    traced = (folder / NAMES[2]).read_text().splitlines()
    (line,) = [line for line in traced if "aten.erf" in line]
    assert line.endswith("# f32[B, 6]  from aten.gelu")
    assert any("bi_compile.linear.default(" in line and line.endswith("# f32[B, 6]") for line in traced)


def test_the_report_stands_beside_the_graphs(shown):
    folder, _, _ = shown
    text = (folder / "report.txt").read_text()
    assert text.startswith("compilation 000: every sample gets the same bits")
    assert "bi_compile.linear" in text
    assert json.loads((folder / "report.json").read_text())["promised"]
    assert "<svg" in (folder / "report.html").read_text()


def test_kernels_are_named_with_their_file(shown):
    folder, _, _ = shown
    file, *names = (folder / NAMES[3]).read_text().splitlines()
    assert Path(file).suffix == ".py"
    assert any("cpp_fused" in name for name in names)


def test_logs_and_trace_show_the_same(shown):
    _, logged, trace = shown
    for name in NAMES:
        assert name in logged
        assert f'"name": "bi_compile_{Path(name).stem}"' in trace
    assert "from aten.gelu" in logged
    assert "from aten.gelu" in trace


def test_a_refused_model_has_its_report_too(tmp_path):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: torch.linalg.qr(x).R.relu(), backend="batch_invariant", options={"dump": str(tmp_path)}
    )
    with pytest.raises(Exception, match=r"BatchMixingError: aten\.linalg_qr mixes the samples of a batch"):
        compiled(torch.randn(3, 4))
    assert "refused: no promise for aten.linalg_qr.default" in (tmp_path / "000" / "report.txt").read_text()


def test_each_compilation_has_a_folder_and_none_is_written_over(tmp_path):
    for features in (3, 5):
        torch.compiler.reset()
        model = nn.Linear(features, 2).requires_grad_(False)
        torch.compile(model, backend="batch_invariant", options={"dump": tmp_path})(torch.randn(4, features))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000", "001"]
    assert "f32[B, 5]" in (tmp_path / "001" / "00_captured.py").read_text()
