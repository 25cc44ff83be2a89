"""The only file that names Inductor settings or private torch APIs: one place per torch version."""

import shlex
from pathlib import Path

import torch

from bi_compile.errors import CompilerNotFoundError


def best_isa() -> str:
    """The instruction set Inductor's own kernels use on this machine: "avx512", "avx2" or "portable"."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    name = str(pick_vec_isa())
    for known in ("avx512", "avx2"):
        if name.startswith(known):
            return known
    return "portable"


_ISA_FLAGS = {
    "avx512": (
        "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mf16c "
        "-DCPU_CAPABILITY=AVX512 -DCPU_CAPABILITY_AVX512 -DBI_ISA_AVX512"
    ),
    "avx2": "-mavx2 -mfma -mf16c -DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2 -DBI_ISA_AVX2",
    "portable": "-DCPU_CAPABILITY=DEFAULT -DCPU_CAPABILITY_DEFAULT -DBI_ISA_PORTABLE",
}


def cpp_command(source: Path, *, flags: list[str], isa: str) -> list[str]:
    """The command, without `-o TARGET`, by which torch's own toolchain compiles `source` to a library.

    Raises CompilerNotFoundError.
    """
    from torch._inductor import exc
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions

    try:
        options = CppTorchOptions(include_pytorch=True)
    except (exc.InvalidCxxCompiler, RuntimeError, FileNotFoundError) as error:
        from torch._inductor import config

        raise CompilerNotFoundError(str(config.cpp.cxx)) from error
    builder = CppBuilder(name="kernels", sources=[str(source)], BuildOption=options, output_dir="/")
    command = shlex.split(builder.get_command_line())
    at = command.index("-o")
    del command[at : at + 2]
    # -march=native would let the compiler use more than the chosen instruction set; ours are explicit.
    command = [word for word in command if word != "-march=native"]
    return [*command, *_ISA_FLAGS[isa].split(), *flags]
