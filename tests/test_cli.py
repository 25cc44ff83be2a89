"""The command line: what is installed, and a check whose exit status can be relied on."""

import json
import subprocess
import sys

import pytest

from bi_compile import inductor, supported
from bi_compile.cli import load, main
from bi_compile.errors import CompilerNotFoundError, FactoryError

MODELS = """
import torch


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(301, 7), torch.nn.ReLU()), torch.randn(6, 301)


class Named(torch.nn.Module):
    def forward(self, *, a, scale):
        return {"y": a * scale}


def named():
    return Named(), {"a": torch.randn(6, 3), "scale": 2.0}


def two():
    return torch.add, torch.randn(6, 3), torch.randn(6, 3)


def refused():
    return lambda x: torch.linalg.qr(x).R, torch.randn(6, 3)


def no_pair():
    return torch.randn(3)


def no_callable():
    return torch.randn(3), torch.randn(3)


number = 3
"""


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    (tmp_path / "cli_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("cli_models", None)


def test_the_installation_is_shown(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for line in ("bi_compile  ", "torch  ", "python  ", "devices  ", "compiler  ", "instruction set  "):
        assert f"\n{line}" in f"\n{text}"
    assert "kernel cache" in text
    assert all(op in text for ops in supported.rewritten().values() for op in ops)


def test_an_installation_that_cannot_build_says_so(capsys, monkeypatch):
    def none():
        raise CompilerNotFoundError("g++, clang++")

    monkeypatch.setattr(inductor, "require_compiler", none)
    assert main([]) == 1
    assert "no C++ compiler found" in capsys.readouterr().out


def test_a_good_model_passes(capsys, tmp_path):
    assert main(["check", "cli_models:make", "--html", str(tmp_path / "report.html")]) == 0
    output = capsys.readouterr()
    assert "Sequential: every sample gets the same bits" in output.out
    assert "passed: " in output.out
    assert "stock PyTorch, same check: " in output.out
    assert output.err == "", "no progress where nobody looks"
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_keyword_inputs_and_json(capsys):
    assert main(["check", "cli_models:named", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["name"] == "Named"
    assert data["check"]["passed"] is True
    assert data["check"]["details"]["samples"] == 6


def test_a_refused_model_fails(capsys):
    assert main(["check", "cli_models:refused"]) == 1
    text = capsys.readouterr().out
    assert "refused: no promise for aten.linalg_qr.default" in text
    assert "failed: not checked: it does not compile" in text


def test_a_model_that_changes_with_the_batch_fails(capsys, monkeypatch):
    # As if the backend were stock PyTorch: the check itself must notice.
    monkeypatch.setattr("torch.compile", lambda model, **options: lambda x: model(x + 1e-3 * len(x)))
    monkeypatch.setattr("bi_compile.report.explain.collect", _nothing_wrong)
    assert main(["check", "cli_models:make"]) == 1
    assert "failed: output of sample" in capsys.readouterr().out


def _nothing_wrong(name):
    from contextlib import nullcontext

    from tests.report.examples import good

    return nullcontext(good())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("cli_models", "'cli_models' names no factory"),
        (":make", "':make' names no factory"),
        ("cli_modles:make", "cannot import 'cli_modles': No module named 'cli_modles'"),
        ("cli_models:mkae", "module 'cli_models' has no 'mkae'\nHint: did you mean 'make'?"),
        ("cli_models:number", "cli_models:number returned nothing: it is an int, not a function"),
        ("cli_models:no_pair", "cli_models:no_pair returned a Tensor"),
        ("cli_models:no_callable", "cli_models:no_callable returned a tuple of a Tensor, a Tensor"),
    ],
)
def test_a_wrong_path_is_explained(path, message, capsys):
    assert main(["check", path]) == 2
    assert f"FactoryError: {message}" in capsys.readouterr().err


def test_forms_of_inputs():
    assert len(load("cli_models:make")[1]) == 1
    assert len(load("cli_models:two")[1]) == 2
    assert set(load("cli_models:named")[2]) == {"a", "scale"}
    with pytest.raises(FactoryError):
        load("cli_models:no_pair")


def test_the_module_runs_and_refuses_unknown_commands():
    run = subprocess.run(
        [sys.executable, "-m", "bi_compile", "chekc", "x"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "invalid choice: 'chekc'" in run.stderr


def test_without_a_cuda_device_there_is_nothing_to_tune(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["tune", "64x64"]) == 1
    assert capsys.readouterr().err == "no CUDA device: nothing to tune\n"


@pytest.mark.parametrize("shape", ["64", "0x64", "64x", "ax64"])
def test_shapes_to_tune_are_checked(capsys, shape):
    with pytest.raises(SystemExit):
        main(["tune", shape])
    assert f"'{shape}' is no shape such as 6144x4096" in capsys.readouterr().err
