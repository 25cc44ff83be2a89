"""Importing bi_compile, its testing package or its pytest plugin imports no torch."""

import re
import subprocess
import sys

import pytest

import bi_compile.testing
from bi_compile.testing import _PUBLIC

NO_TORCH = (
    "import sys, {module}; assert 'torch' not in sys.modules, sorted(m for m in sys.modules if 'torch' in m)"
)


@pytest.mark.parametrize(
    "module", ["bi_compile", "bi_compile.testing", "bi_compile.testing.plugin", "bi_compile.testing.messages"]
)
def test_importing_imports_no_torch(module):
    run = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(module=module)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_the_check_itself_can_fail():
    run = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(module="bi_compile.testing.bits")],
        capture_output=True,
        text=True,
    )
    assert "AssertionError" in run.stderr


def test_a_pytest_run_with_the_plugin_imports_no_torch(tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n\ndef test_no_torch():\n    assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "bi-compile" in run.stdout or "bi_compile" in run.stdout, "the plugin was not loaded"


def test_importing_bi_compile_does_not_load_the_testing_package():
    code = "import sys, bi_compile; assert 'bi_compile.testing' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_all_public_names_resolve():
    assert sorted(_PUBLIC) == bi_compile.testing.__all__ == dir(bi_compile.testing)
    for name in _PUBLIC:
        assert getattr(bi_compile.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = bi_compile.testing.nonsense


MODEL_TESTS = """
import pytest, torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(301, 75), torch.nn.Tanh()).requires_grad_(False)

def test_varies(batch_invariant):
    batch_invariant(model, torch.randn(8, 301))

def test_is_invariant(batch_invariant):
    report = batch_invariant(lambda x: x * 2, torch.randn(8, 3), sizes=(2, 3))
    assert report.sizes == (2, 3)
"""


def run_pytest(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_fixture_reports_the_first_op_and_one_line_of_summary(tmp_path):
    (tmp_path / "test_model.py").write_text(MODEL_TESTS)
    for workers in ((), ("-n", "1")):
        run = run_pytest(tmp_path, "--bi-backend", "eager", "--junitxml", "out.xml", *workers)
        assert run.returncode == 1, run.stdout + run.stderr
        assert "BatchVarianceError: output of sample" in run.stdout
        assert "batch invariance" in run.stdout
        assert "aten.addmm.default is the first op whose bits change with the batch" in run.stdout
        assert re.search(r"batch invariance \(eager\): 2 checks, \d+ rows compared, 1 failed", run.stdout)
        assert 'name="batch_invariant"' in (tmp_path / "out.xml").read_text()


def test_a_failing_random_model_is_saved_as_a_test(tmp_path):
    (tmp_path / "test_random.py").write_text(
        "from bi_compile.testing.checking import check_model\n"
        "from bi_compile.testing.random_models import RandomModel\n\n"
        "def test_random():\n"
        "    steps = (('linear', (0, 0, 9, 0, 0, 0)), ('tanh', (0,) * 6))\n"
        "    check_model(RandomModel((301,), steps, seed=1), backend='eager')\n"
    )
    run = run_pytest(tmp_path, "--bi-save", "found", "test_random.py")
    assert "saved as found" in run.stdout, run.stdout + run.stderr
    (saved,) = (tmp_path / "found").glob("test_found_*.py")
    again = run_pytest(tmp_path, str(saved))
    assert again.returncode == 1
    assert "expected, alone: tensor" in again.stdout
