"""Importing bi_compile, its testing package or its pytest plugin imports no torch."""

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
