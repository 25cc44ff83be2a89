"""Compile a Triton kernel for a GPU that need not be there, and read off what came out."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bi_compile.templates.gpu.device import COMPILATION
from bi_compile.templates.gpu.launch import Launch

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
"""Triton's names of dtypes."""


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
    num_warps: int,
    num_stages: int,
    **options: Any,
) -> Any:
    """The compiled kernel (`.asm["ttgir"]`, `.asm["ptx"]`, `.metadata`) for a capability such as 90, Hopper.

    types: argument -> Triton's name of its type, such as "*bf16", "i32", "fp32", "tensordesc<bf16[64, 64]>".
        Pointers and integers are taken as multiples of 16, as those of most weights are, but for the integers
        that the kernel does not specialise.
    constants: argument -> its value for this specialisation.
    options: Triton's, instead of those that all our kernels are compiled with.
    """
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (i,): aligned
        for i, (parameter, kind) in enumerate(zip(kernel.params, signature.values(), strict=True))
        if kind.startswith("*") or (kind == "i32" and not parameter.do_not_specialize)
    }
    source = ASTSource(kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages, **COMPILATION, **options}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_launch(launch: Launch, capability: int, *tensors: torch.dtype) -> Any:
    """What a launch on tensors of these dtypes runs, compiled for a capability; see `compile_kernel`."""
    kernel, given = launch.kernel, dict(launch.arguments)
    types = {name: f"*{NAMES[dtype]}" for name, dtype in zip(kernel.arg_names, tensors, strict=False)}
    constants = {p.name: given.pop(p.name) for p in kernel.params if p.is_constexpr and p.name in given}
    if "OVERLAP" in kernel.arg_names:
        constants["OVERLAP"] = capability >= 90
    for parameter in kernel.params:
        value = given.pop(parameter.name, None)
        if isinstance(value, float) or parameter.annotation_type:
            types[parameter.name] = parameter.annotation_type or "fp32"
        elif value is not None:
            types[parameter.name] = "i32"
    options = {name: value for name, value in given.items() if name not in COMPILATION}
    options = {"num_warps": 4, "num_stages": 3} | options
    return compile_kernel(kernel, capability, types, constants, **options)


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
