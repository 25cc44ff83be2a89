"""Every Python snippet of README.md and docs/ runs: block after block in one process per page.

A function named test_* is called, as pytest would, if it takes no arguments or hypothesis gives them;
pytest runs those that take the fixture `batch_invariant`. A ```text block right after a snippet is its exact
output when the line above says "prints".
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bi_compile.supported import as_markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if "```python" in path.read_text()
]
_BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:[^\n`]*\bprints\b[^\n]*\n+```text\n(.*?)^```\n)?", re.M | re.S
)


def snippets(page: Path) -> list[tuple[str, str | None]]:
    """The code of each block, and what it prints where the page says so."""
    return [(code, output) for code, output in _BLOCK.findall(page.read_text().replace("```\n\n", "```\n"))]


def as_script(page: Path) -> str:
    """One program of all blocks; each says where it starts, so that a failure names its snippet."""
    parts = []
    for number, (code, output) in enumerate(snippets(page), 1):
        tests = re.findall(
            r"^(?:@given\(.*\)\ndef (test_\w+)\((?!batch_invariant)|def (test_\w+)\(\))", code, re.M
        )
        calls = "".join(f"{drawn or plain}()\n" for drawn, plain in tests)
        parts.append(f"_run({number}, {code + calls!r}, {output or None!r})")
        if fixed := re.findall(r"^def (test_\w+)\(batch_invariant\b", code, re.M):
            parts.append(f"_pytest({number}, {fixed!r})")
    return _RUNNER + "\n".join(parts) + "\n"


_RUNNER = """
import contextlib, io
_names = {"__name__": "__main__"}
def _run(number, code, expected):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, f"snippet {number}", "exec"), _names)
    if expected is not None and out.getvalue() != expected:
        raise AssertionError(f"snippet {number} prints {out.getvalue()!r}, the page says {expected!r}")
def _pytest(number, names):
    import pathlib, pytest
    path = pathlib.Path(f"test_snippet_{number}.py")
    path.write_text(f"import __main__; globals().update({{n: __main__._names[n] for n in {names}}})")
    if code := pytest.main(["-q", "-p", "no:cacheprovider", str(path)]):
        raise AssertionError(f"snippet {number}: pytest ends with {code}")
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_snippets_run(page: Path, tmp_path: Path):
    script = tmp_path / "snippets.py"
    script.write_text(as_script(page))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-4000:]


def test_the_list_of_ops_is_current():
    page = (ROOT / "docs" / "ops.md").read_text()
    assert page == as_markdown(), "run: python docs/generate_ops.py"


def test_every_page_with_code_is_found():
    assert [page.name for page in PAGES][:1] == ["README.md"]
    assert any(page.name == "testing-your-model.md" for page in PAGES)


def test_a_wrong_output_and_a_failing_test_are_noticed(tmp_path: Path):
    page = tmp_path / "page.md"
    for broken in (
        "```python\nprint(1)\n```\n\nprints\n\n```text\n2\n```\n",
        "```python\ndef test_x():\n    1 / 0\n```\n",
        "```python\nfrom hypothesis import given, strategies\n"
        "@given(x=strategies.just(1))\ndef test_x(x):\n    x / 0\n```\n",
        "```python\ndef test_x(batch_invariant):\n    1 / 0\n```\n",
    ):
        page.write_text(broken)
        run = subprocess.run(
            [sys.executable, "-c", as_script(page)], capture_output=True, text=True, cwd=tmp_path
        )
        assert re.search("AssertionError|ZeroDivisionError", run.stderr), broken
