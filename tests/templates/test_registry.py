"""Kernels are found by family and device, and what is missing says so."""

import subprocess
import sys

import pytest

from bi_compile.errors import TritonNotFoundError, UnsupportedDeviceError
from bi_compile.templates import contraction as _  # noqa: F401  (defines the ops)
from bi_compile.templates import registry


def test_a_device_without_kernels_is_refused():
    with pytest.raises(UnsupportedDeviceError, match="no contraction kernels for device 'meta'"):
        registry.load("contraction", "meta")
    with pytest.raises(UnsupportedDeviceError, match="no isolation kernels for device 'cuda'"):
        registry.load("isolation", "cuda")


def test_without_triton_cuda_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "has_kernels", lambda family, device: True)
    monkeypatch.setattr(registry, "_gpu_module", lambda family: "triton")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(TritonNotFoundError, match="the contraction kernels for CUDA devices need Triton"):
        registry.load("contraction", "cuda")


def test_the_cpu_alone_never_imports_triton():
    program = (
        "import sys, torch, bi_compile.templates.contraction; "
        "torch.ops.bi_compile.mm(torch.ones(2, 2), torch.ones(2, 2)); "
        "sys.exit(any(name.startswith('bi_compile.templates.gpu') for name in sys.modules))"
    )
    # A process of its own: tests in Triton's interpreter import it too.
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
