"""Compile a Triton kernel for a GPU that need not be there, and read off what came out."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bi_compile.templates.gpu.device import COMPILATION


class Resources(NamedTuple):
    """What one block of a compiled kernel needs."""

    registers: int
    spilled: int
    """Bytes of stack and local memory per thread: 0 means that everything lives in registers."""
    shared_memory: int


def compile_kernel(
    kernel: Any,
    capability: int,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    warps: int,
    stages: int,
) -> Any:
    """The compiled kernel (`.asm["ttgir"]`, `.asm["ptx"]`, `.metadata`) for a capability such as 90, Hopper.

    types: argument -> Triton's name of its type, such as "*bf16", "i32", "fp32", "tensordesc<bf16[64, 64]>".
        Pointers and integers are taken as multiples of 16, as those of most weights are.
    constants: argument -> its value for this specialisation.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (i,): aligned for i, kind in enumerate(signature.values()) if kind.startswith("*") or kind == "i32"
    }
    source = ASTSource(kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages, **COMPILATION}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any) -> Resources:
    """Read from the machine code with the cuobjdump that Triton brings along."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        run = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", run.stdout + run.stderr)
    assert found, run.stdout
    registers, stack, local = map(int, found.groups())
    return Resources(registers, stack + local, compiled.metadata.shared)
