"""What `tl.dot` is in the interpreter for attention: chains of fused multiply-adds, in C++ for its speed."""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from bi_compile.inductor import require_compiler


def chain(a: torch.Tensor, b: torch.Tensor, total: torch.Tensor, dtype: str, precision: str) -> torch.Tensor:
    """total [M, N] + a [M, K] x b [K, N], for `interpreter.use_dot`."""
    out = total.clone(memory_format=torch.contiguous_format)
    a, b = a.contiguous(), b.contiguous()
    _library().chain(*(x.data_ptr() for x in (a, b, out)), *a.shape, b.shape[1])
    return out


@cache
def _library() -> ctypes.CDLL:
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        target = f"{folder}/chain.so"
        flags = ["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run([require_compiler(), *flags, source, "-o", target], check=True)
        library = ctypes.CDLL(target)
    library.chain.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 3
    return library
