"""Importing bi_compile, its testing package or its pytest plugin imports no torch."""

import re
import runpy
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

def test_shows_nothing(batch_invariant):
    batch_invariant(lambda x: x * 2, torch.randn(8, 3), sizes=(2, 3), control=True)

def test_of_something_else():
    pass
"""


def run_pytest(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_fixture_reports_the_first_op_the_control_and_one_line_of_summary(tmp_path):
    (tmp_path / "test_model.py").write_text(MODEL_TESTS)
    marked = ("-m", "batch_invariance", "--show-capture=no")
    for workers in ((), ("-n", "1")):
        run = run_pytest(tmp_path, "--bi-backend", "aot_eager", "--junitxml", "out.xml", *marked, *workers)
        assert run.returncode == 1, run.stdout + run.stderr
        assert "BatchVarianceError: output of sample" in run.stdout
        assert "--- batch invariance ---" in run.stdout
        assert "aten.addmm.default is the first op whose bits change with the batch" in run.stdout
        assert "the control fails, too: output of sample" in run.stdout
        assert "VacuousCheckError: the control passes the same check" in run.stdout
        assert re.search(r"batch invariance \(aot_eager\): 3 checks, \d+ rows compared, 2 failed", run.stdout)
        assert "2 failed, 1 passed" in run.stdout, "the test of something else does not run"
        results = (tmp_path / "out.xml").read_text()
        assert results.count('name="batch_invariant"') == 3
        assert re.search(r'value="1 check, \d+ rows in 10 batches"', results)
        assert results.count('value="1 check, 0 rows in 0 batches, failed"') == 2
        assert "aten.addmm.default is the first op" in results


DRAWN = """
import torch
from hypothesis import given, settings, strategies as st
from bi_compile.testing import compiling
from bi_compile.testing.strategies import tensors

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(301, 75), torch.nn.Tanh()).requires_grad_(False)
graphs = []
compiled = compiling.compiled
compiling.compiled = lambda *arguments: graphs.append(arguments) or compiled(*arguments)

def double(x):
    return x * 2

@settings(max_examples=5, deadline=None, database=None, derandomize=True)
@given(x=tensors((st.integers(2, 5), 3), values=["normal"]))
def test_is_invariant(batch_invariant, x):
    batch_invariant(double, x, sizes=(2,), trials=1, neighbours=())
    assert len(graphs) == 1, "compiled for each example"

@settings(max_examples=5, deadline=None, database=None, derandomize=True)
@given(samples=st.integers(2, 5))
def test_varies(batch_invariant, samples):
    x = torch.randn(samples, 301, generator=torch.Generator().manual_seed(0))
    batch_invariant(model, x, sizes=(2, 3), neighbours=())
"""


def test_the_fixture_serves_tests_that_hypothesis_draws(tmp_path):
    """One line of the summary and one section a test, however many examples there were."""
    (tmp_path / "test_drawn.py").write_text(DRAWN)
    run = run_pytest(tmp_path, "--bi-backend", "aot_eager", "--junitxml", "out.xml", "-rA")
    assert "1 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    assert "FailedHealthCheck" not in run.stdout
    assert "samples=2," in run.stdout, "the failure has shrunk"
    assert run.stdout.count("--- batch invariance ---") == 1
    assert "aten.addmm.default is the first op whose bits change with the batch" in run.stdout
    assert re.search(r"batch invariance \(aot_eager\): \d+ checks, \d+ rows compared, 1 failed", run.stdout)
    results = (tmp_path / "out.xml").read_text()
    assert results.count('name="batch_invariant"') == 2
    assert 'value="5 checks, 10 rows in 5 batches"' in results


FAILING = """
from hypothesis import Phase, given, settings, strategies as st
from bi_compile.testing import check_decoder, check_model
from bi_compile.testing.decoders import Decoder
from bi_compile.testing.random_models import RandomModel

MODEL = RandomModel((301,), (("linear", (0, 0, 9, 0, 0, 0)), ("tanh", (0,) * 6)), seed=1)
DECODER = Decoder(heads=2, kv_heads=1, head_size=32, inner=118, lengths=(40, 17, 9), cuts=(17, 1, 5))

@settings(max_examples=20, database=None, derandomize=True, phases=[Phase.generate, Phase.shrink])
@given(number=st.integers(0, 3))
def test_both(number):
    if number == 1:
        check_model(MODEL, backend="eager")
    if number == 2:
        check_decoder(DECODER)
    assert number != 3
"""


def test_what_fails_is_saved_as_tests(tmp_path):
    """Also where hypothesis finds several failures in one test, and raises them as a group."""
    (tmp_path / "test_random.py").write_text(FAILING)
    run = run_pytest(tmp_path, "--bi-save", "found", "test_random.py")
    assert "3 distinct failures" in run.stdout, run.stdout + run.stderr
    assert run.stdout.count("saved as found") == 2
    for path, how in zip(sorted((tmp_path / "found").iterdir(), key=size), ("batch", "pieces"), strict=True):
        (test,) = (fn for name, fn in runpy.run_path(str(path)).items() if name.startswith("test_"))
        with pytest.raises(AssertionError, match=r"expected, alone: \[.*\]\ngot, in (the )?" + how):
            test()


def size(path):
    return path.stat().st_size
