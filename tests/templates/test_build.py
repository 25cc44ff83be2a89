"""Building the kernels: cached by content, and one clear error where it cannot be done."""

import os
import subprocess
import sys

import pytest

from bi_compile.errors import CacheDirectoryError, KernelBuildError
from bi_compile.templates.cpu import build as builder


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_compiler_is_one_clear_error_for_an_op(tmp_path):
    code = "import torch, bi_compile.templates.softmax as s; s.softmax(torch.ones(2, 3))"
    out = run(code, CXX="no-such-compiler", BI_COMPILE_CACHE_DIR=str(tmp_path)).stderr
    assert "CompilerNotFoundError: no C++ compiler found: the CPU kernels are compiled at first use" in out
    assert "searched: no-such-compiler" in out
    assert "apt-get install g++" in out


def test_no_compiler_is_one_clear_error_for_a_model(tmp_path):
    code = "import torch; torch.compile(torch.nn.Linear(2, 3), backend='batch_invariant')(torch.ones(1, 2))"
    out = run(code, CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path)).stderr
    assert "CompilerNotFoundError: no C++ compiler found" in out


def test_a_cache_directory_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("BI_COMPILE_CACHE_DIR", str(blocked / "below"))
    with pytest.raises(CacheDirectoryError, match="BI_COMPILE_CACHE_DIR"):
        builder.build("scatter")


def test_without_a_writable_home_kernels_go_to_the_temporary_directory(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.delenv("BI_COMPILE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(builder.tempfile, "gettempdir", lambda: str(tmp_path))
    assert builder.cache_directory().parent == tmp_path


def test_a_source_that_does_not_compile_shows_the_compilers_words(monkeypatch, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cpu.cpp").write_text("this is no C++;\n")
    monkeypatch.setattr(builder, "_TEMPLATES", tmp_path)
    monkeypatch.setenv("BI_COMPILE_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(KernelBuildError, match=r"the C\+\+ compiler failed on the broken kernels"):
        builder.build("broken")


def test_a_build_is_kept_and_an_edit_makes_a_new_one(monkeypatch, tmp_path):
    family = tmp_path / "tiny"
    family.mkdir()
    (family / "cpu.cpp").write_text("int tiny() { return 1; }\n")
    monkeypatch.setattr(builder, "_TEMPLATES", tmp_path)
    monkeypatch.setenv("BI_COMPILE_CACHE_DIR", str(tmp_path / "cache"))
    first = builder.build("tiny")
    stamp = first.stat().st_mtime_ns
    assert builder.build("tiny") == first
    assert first.stat().st_mtime_ns == stamp
    (family / "cpu.cpp").write_text("int tiny() { return 2; }\n")
    assert builder.build("tiny") != first
