"""examples/user_repo, copied out of this repository: green, and its broken half fails as the docs show."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "testing-your-model.md"


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A copy of it, beside a folder `site` in which pip has installed it and bi_compile."""
    folder = tmp_path_factory.mktemp("user")
    repo = Path(shutil.copytree(ROOT / "examples" / "user_repo", folder / "repo"))
    ours = Path(shutil.copytree(ROOT / "bi_compile", folder / "ours" / "bi_compile")).parent
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, ours)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    target = ["--no-build-isolation", "--target", str(folder / "site"), str(ours), str(repo)]
    subprocess.run([*install, *target], check=True)
    return repo


def run_python(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(repo.parent / "site"), "COLUMNS": "110"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=repo, env=environment
    )


def run_pytest(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(repo, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *arguments)


def test_what_is_installed_is_used(repo):
    run = run_python(
        repo, "-P", "-c", "import bi_compile, scorer; print(bi_compile.__file__, scorer.__file__)"
    )
    assert run.stdout.count(str(repo.parent / "site")) == 2, run.stdout + run.stderr


def test_a_users_project_is_green(repo):
    run = run_pytest(repo)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


def test_its_broken_half_fails_as_the_docs_show(repo):
    run = run_pytest(repo, "broken")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "3 failed" in run.stdout

    shown = re.search(r"`pytest broken` .*?```text\n(.*?)```", PAGE.read_text(), re.S)
    assert shown is not None
    documented = [line for line in shown[1].splitlines() if line.startswith("E ")]
    assert len(documented) > 15
    # Which batch and element differ first, and by how much, is the processor's affair.
    printed = {numberless(line) for line in run.stdout.splitlines()}
    missing = [line for line in documented if numberless(line) not in printed]
    assert all("ulp" in line or "neighbours" in line for line in missing), run.stdout
    for line in ("scorer.py:15, in forward:  return", "scorer.py:22, in forward:  return"):
        assert line in run.stdout
        assert line in shown[1]


def numberless(line: str) -> str:
    return re.sub(r"\d+", "#", re.sub(r"\S*/scorer\.py", "scorer.py", line)).rstrip()
