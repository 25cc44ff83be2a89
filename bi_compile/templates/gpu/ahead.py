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
    **options: Any,
) -> Any:
    """The compiled kernel (`.asm["ttgir"]`, `.asm["ptx"]`, `.metadata`) for a capability such as 90, Hopper.

    types: argument -> Triton's name of its type, such as "*bf16", "i32", "fp32", "tensordesc<bf16[64, 64]>".
        Pointers and integers are taken as multiples of 16, as those of most weights are.
    constants: argument -> its value for this specialisation.
    options: Triton's, instead of those that all our kernels are compiled with.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (i,): aligned for i, kind in enumerate(signature.values()) if kind.startswith("*") or kind == "i32"
    }
    source = ASTSource(kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages, **COMPILATION, **options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled: Any) -> Resources:
    """Read off the machine code."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", _cuobjdump(compiled, "-res-usage"))
    assert found, "cuobjdump says nothing of registers"
    registers, stack, local = map(int, found.groups())
    return Resources(registers, stack + local, compiled.metadata.shared)


def spills_in_innermost_loops(compiled: Any) -> int:
    """Instructions between registers and local memory in the innermost loops that use the tensor core."""
    code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", _cuobjdump(compiled, "-sass"))
    lines = [(int(address, 16), text) for address, text in code]
    jumps = [
        (int(target[1], 16), address)
        for address, text in lines
        if (target := re.search(r"BRA.*?(0x[0-9a-f]+)", text)) and int(target[1], 16) < address
    ]
    spilled = 0
    for low, high in jumps:
        body = [text for address, text in lines if low <= address <= high]
        innermost = not any((low, high) != (i, j) and low <= i and j <= high for i, j in jumps)
        if innermost and any("MMA" in text for text in body):
            spilled += sum("LDL" in text or "STL" in text for text in body)
    return spilled


def _cuobjdump(compiled: Any, option: str) -> str:
    """What the cuobjdump that Triton brings along says."""
    tool = Path(triton.__file__ or "").parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        run = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True)
    return run.stdout + run.stderr
